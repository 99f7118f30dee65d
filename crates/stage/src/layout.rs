//! Which of the processes of one job this is, as `torchrun`, Slurm scripts and the Kubernetes `PyTorchJob` say it.

use std::time::Duration;

use crate::error::{Hint, UsageError};

/// One of `size` processes that run a stage together. Rank 0 alone writes files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `RANK`: this process, from 0.
    pub rank: usize,
    /// `WORLD_SIZE`: how many there are.
    pub size: usize,
    /// `LOCAL_RANK`: this process among those on its machine.
    pub local_rank: usize,
    /// `MASTER_ADDR` and `MASTER_PORT`: where they meet. Empty for a process on its own.
    pub master: (String, u16),
    /// Whether the launcher keeps the store at that address, as `torchrun` does; else rank 0 does.
    pub served: bool,
    /// Put before all keys in the store: another attempt of the launcher's must not meet the one before.
    pub attempt: String,
    /// How long to wait for a rank that does nothing.
    pub patience: Duration,
    /// What sums over the processes, where the user has said.
    pub backend: Option<Backend>,
}

/// What sums tensors over processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// From GPU to GPU.
    Nccl,
    /// In the host's memory.
    Gloo,
}

impl Default for Layout {
    /// A process on its own.
    fn default() -> Self {
        Self {
            rank: 0,
            size: 1,
            local_rank: 0,
            master: (String::new(), 0),
            served: false,
            attempt: String::new(),
            patience: Duration::from_mins(10),
            backend: None,
        }
    }
}

impl Layout {
    /// Reads the environment. Without `WORLD_SIZE`, or where it is 1, the process is on its own.
    ///
    /// # Errors
    /// A variable that is missing or is no number in its range: wrong usage.
    pub fn from_env(patience: Duration) -> anyhow::Result<Self> {
        Self::read(&|name| std::env::var(name).ok(), patience)
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>, patience: Duration) -> anyhow::Result<Self> {
        let alone = Self { patience, ..Self::default() };
        let Some(size) = number(variable, "WORLD_SIZE")? else {
            return match variable("RANK") {
                Some(_) => Err(usage("RANK is set, but WORLD_SIZE is not".to_owned())),
                None => Ok(alone),
            };
        };
        let least = |ok: bool, what: String| if ok { Ok(()) } else { Err(usage(what)) };
        least(size > 0, "WORLD_SIZE is 0".to_owned())?;
        if size == 1 {
            return Ok(alone);
        }
        let needed = |name: &str| {
            variable(name)
                .filter(|text| !text.is_empty())
                .ok_or_else(|| usage(format!("WORLD_SIZE is {size}, but {name} is not set")))
        };
        needed("RANK")?;
        let rank = number(variable, "RANK")?.unwrap_or_default();
        least(rank < size, format!("RANK is {rank}, but WORLD_SIZE is {size}: ranks begin at 0"))?;
        let host = needed("MASTER_ADDR")?;
        let port = needed("MASTER_PORT")?;
        let port = port.parse().map_err(|_| usage(format!("MASTER_PORT is `{port}`, no port")))?;
        Ok(Self {
            rank,
            size,
            local_rank: number(variable, "LOCAL_RANK")?.unwrap_or_default(),
            master: (host, port),
            served: variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True"),
            attempt: variable("TORCHELASTIC_RESTART_COUNT").unwrap_or_default(),
            patience,
            backend: None,
        })
    }

    /// Whether this is the process that writes.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Whether there are other processes.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.size > 1
    }
}

fn number(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> anyhow::Result<Option<usize>> {
    let Some(text) = variable(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let parsed = text.parse().map_err(|_| usage(format!("{name} is `{text}`, no whole number")))?;
    Ok(Some(parsed))
}

fn usage(what: String) -> anyhow::Error {
    let hint = "start the processes with torchrun or as in scripts/launch/; for a single process unset RANK and WORLD_SIZE";
    UsageError::new(Hint::new(anyhow::anyhow!(what), hint)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Layout> {
        let find = |name: &str| {
            let found = variables.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Layout::read(&find, Duration::from_secs(5))
    }

    #[test]
    fn a_process_without_a_launcher_is_on_its_own() {
        let alone = Layout { patience: Duration::from_secs(5), ..Layout::default() };
        assert_eq!(read(&[]).unwrap(), alone);
        assert_eq!(read(&[("WORLD_SIZE", "1"), ("RANK", "0")]).unwrap(), alone);
        assert_eq!(read(&[("MASTER_ADDR", "somewhere")]).unwrap(), alone);
        assert!(alone.is_first() && !alone.is_shared());
    }

    #[test]
    fn what_torchrun_sets_is_read() {
        let layout = read(&[
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node-0"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ])
        .unwrap();
        let expected = Layout {
            rank: 5,
            size: 8,
            local_rank: 1,
            master: ("node-0".to_owned(), 29500),
            served: true,
            attempt: "2".to_owned(),
            patience: Duration::from_secs(5),
            backend: None,
        };
        assert_eq!(layout, expected);
        assert!(!layout.is_first() && layout.is_shared());
    }

    #[test]
    fn a_layout_that_does_not_fit_is_wrong_usage() {
        for (variables, expected) in [
            (&[("RANK", "0")][..], "RANK is set, but WORLD_SIZE is not"),
            (&[("WORLD_SIZE", "0")], "WORLD_SIZE is 0"),
            (&[("WORLD_SIZE", "two")], "WORLD_SIZE is `two`, no whole number"),
            (&[("WORLD_SIZE", "2")], "WORLD_SIZE is 2, but RANK is not set"),
            (&[("WORLD_SIZE", "2"), ("RANK", "-1")], "RANK is `-1`, no whole number"),
            (
                &[("WORLD_SIZE", "2"), ("RANK", "2")],
                "RANK is 2, but WORLD_SIZE is 2: ranks begin at 0",
            ),
            (&[("WORLD_SIZE", "2"), ("RANK", "1")], "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
            (
                &[("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "x")],
                "MASTER_PORT is `x`, no port",
            ),
        ] {
            let error = read(variables).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert_eq!(crate::error::exit_code(&error), 2, "{expected}");
        }
    }
}
