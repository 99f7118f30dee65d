//! The command line, the same in all stages.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, Command, value_parser};

use crate::config::Override;
use crate::device::DeviceSpec;
use crate::layout::Backend;
use crate::options::{DEVICE, VERBOSE};

/// What a stage is, for `--help`.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// The binary's name, and its command where it has several: `sft`, `cai generate`. The default configuration is
    /// `configs/<name>.toml`, with a hyphen for the blank.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// What it reads.
    pub reads: &'static str,
    /// What it writes.
    pub writes: &'static str,
    /// A command line that works.
    pub example: &'static str,
    /// How several processes can run it together.
    pub parallel: Parallel,
}

/// How several processes work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parallel {
    /// They cannot.
    No,
    /// By files in the run directory.
    Files,
    /// By sums of tensors.
    Tensors,
}

/// The command line, parsed.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) config: PathBuf,
    /// `--set` in the order given, then `--out` as an override of the key `out`.
    pub(crate) overrides: Vec<Override>,
    pub(crate) device: DeviceSpec,
    pub(crate) resume: bool,
    /// How long to wait for another process of the job that does nothing.
    pub(crate) patience: Duration,
    pub(crate) backend: Option<Backend>,
    pub(crate) check: bool,
    pub(crate) verbose: u8,
}

fn default_config(info: &Info) -> String {
    format!("configs/{}.toml", info.name.replace(' ', "-"))
}

fn command(info: &Info) -> Command {
    let default = default_config(info);
    let flag = |name, value| Arg::new(name).long(name).value_name(value);
    let command = Command::new(info.name)
        .version(env!("CARGO_PKG_VERSION"))
        .about(info.about)
        .after_help(format!(
            "Reads:   {}\nWrites:  {}\nExample: {}",
            info.reads, info.writes, info.example
        ))
        .arg(
            flag("config", "PATH")
                .value_parser(value_parser!(PathBuf))
                .help(format!(
                    "The configuration; paths in it are relative to the current directory [default: {default}]"
                )),
        )
        .arg(
            flag("set", "KEY=VALUE")
                .action(ArgAction::Append)
                .help("Sets a key of the configuration, for instance seed=7; repeatable"),
        )
        .arg(
            flag("out", "DIR")
                .value_parser(value_parser!(PathBuf))
                .help("The run directory, instead of the configuration's `out`"),
        )
        .arg(
            flag("device", "DEVICE")
                .value_parser(|text: &str| text.parse::<DeviceSpec>())
                .default_value("auto")
                .help(DEVICE),
        )
        .arg(
            flag("resume", "WHEN")
                .value_parser(["auto", "never"])
                .default_value("auto")
                .hide_possible_values(true)
                .help("auto goes on from an unfinished run's last checkpoint; never starts over"),
        )
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Checks the configuration, prints the plan and exits"),
        )
        .arg(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .action(ArgAction::Count)
                .help(VERBOSE),
        );
    if info.parallel == Parallel::No {
        return command;
    }
    let command = command.arg(
        flag("rank-timeout", "SECONDS")
            .value_parser(value_parser!(u64).range(1..))
            .default_value("600")
            .help("Under torchrun: how long to wait for a process that does nothing"),
    );
    if info.parallel == Parallel::Files {
        return command;
    }
    command.arg(
        flag("ddp-backend", "BACKEND")
            .value_parser(value_parser!(Backend))
            .hide_possible_values(true)
            .help("Under torchrun: nccl or gloo sums over the processes [default: nccl on GPUs, else gloo]"),
    )
}

/// Parses the arguments after the program's name.
///
/// The error prints itself and knows its exit code: 0 for `--help` and `--version`, 2 for usage.
pub(crate) fn parse(info: &Info, args: &[OsString]) -> Result<Args, clap::Error> {
    let mut command = command(info);
    let name = OsString::from(info.name);
    let mut found = command.try_get_matches_from_mut([&name].into_iter().chain(args))?;
    let mut overrides = Vec::new();
    for text in found.remove_many::<String>("set").into_iter().flatten() {
        let parsed = Override::parse(&text)
            .map_err(|what| command.error(clap::error::ErrorKind::ValueValidation, what))?;
        overrides.push(parsed);
    }
    if let Some(out) = found.remove_one::<PathBuf>("out") {
        overrides.push(Override::out(&out));
    }
    Ok(Args {
        config: found.remove_one("config").unwrap_or_else(|| default_config(info).into()),
        overrides,
        device: found.remove_one("device").unwrap_or_default(),
        resume: found.remove_one::<String>("resume").as_deref() != Some("never"),
        patience: if info.parallel == Parallel::No {
            Duration::ZERO
        } else {
            Duration::from_secs(found.remove_one("rank-timeout").unwrap_or(600))
        },
        backend: match info.parallel {
            Parallel::Tensors => found.remove_one("ddp-backend"),
            Parallel::No | Parallel::Files => None,
        },
        check: found.get_flag("check"),
        verbose: found.get_count("verbose"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: Info = Info {
        name: "sft",
        about: "Fine-tunes a language model on instructions.",
        reads: "a model and token rows",
        writes: "a model",
        example: "sft --config configs/sft.toml --set seed=7",
        parallel: Parallel::Tensors,
    };

    fn parse_words(words: &str) -> Result<Args, clap::Error> {
        parse(&INFO, &words.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn defaults_are_those_of_the_stage() {
        let args = parse_words("").unwrap();
        assert_eq!(args.config, PathBuf::from("configs/sft.toml"));
        assert_eq!(args.device, DeviceSpec::Auto);
        assert!(args.resume && !args.check && args.overrides.is_empty());
        assert_eq!(args.verbose, 0);
    }

    #[test]
    fn every_flag_is_read() {
        let args = parse_words(
            "--config a.toml --set x.y=1 --set z=abc --out runs/b --device cuda:1 --resume never --check -vv \
             --rank-timeout 9 --ddp-backend gloo",
        )
        .unwrap();
        assert_eq!(args.config, PathBuf::from("a.toml"));
        let flags: Vec<&str> = args.overrides.iter().map(|o| o.flag.as_str()).collect();
        assert_eq!(flags, ["--set x.y=1", "--set z=abc", "--out runs/b"]);
        assert_eq!(args.device, DeviceSpec::Cuda(1));
        assert!(!args.resume && args.check);
        assert_eq!(args.verbose, 2);
        assert_eq!((args.patience, args.backend), (Duration::from_secs(9), Some(Backend::Gloo)));
    }

    #[test]
    fn wrong_usage_has_exit_code_2_and_says_what_is_wrong() {
        for (words, expected) in [
            ("--lr 3", "error: unexpected argument '--lr' found"),
            ("--set lr", "error: --set lr: expected KEY=VALUE, for instance --set seed=7"),
            ("--set =3", "error: --set =3: the key is empty; expected KEY=VALUE"),
            (
                "--set a..b=3",
                "error: --set a..b=3: the key has an empty part; write it as a.b=VALUE",
            ),
            (
                "--device gpu",
                "error: invalid value 'gpu' for '--device <DEVICE>': `gpu` is not a device; use auto, cpu or cuda:N (cuda:0 is the first GPU)",
            ),
            (
                "--ddp-backend mpi",
                "error: invalid value 'mpi' for '--ddp-backend <BACKEND>'\n  [possible values: nccl, gloo]",
            ),
            (
                "--resume maybe",
                "error: invalid value 'maybe' for '--resume <WHEN>'\n  [possible values: auto, never]",
            ),
        ] {
            let error = parse_words(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words}");
            let text = error.render().to_string();
            assert!(text.starts_with(expected), "{words}: {text}");
        }
        assert_eq!(parse_words("--help").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn help_names_what_the_stage_reads_and_writes() {
        insta::assert_snapshot!(parse_words("--help").unwrap_err().render(), @r"
        Fine-tunes a language model on instructions.

        Usage: sft [OPTIONS]

        Options:
              --config <PATH>           The configuration; paths in it are relative to the current directory [default: configs/sft.toml]
              --set <KEY=VALUE>         Sets a key of the configuration, for instance seed=7; repeatable
              --out <DIR>               The run directory, instead of the configuration's `out`
              --device <DEVICE>         auto, cpu or cuda:N [default: auto]
              --resume <WHEN>           auto goes on from an unfinished run's last checkpoint; never starts over [default: auto]
              --check                   Checks the configuration, prints the plan and exits
          -v, --verbose...              Log more; -vv logs everything
              --rank-timeout <SECONDS>  Under torchrun: how long to wait for a process that does nothing [default: 600]
              --ddp-backend <BACKEND>   Under torchrun: nccl or gloo sums over the processes [default: nccl on GPUs, else gloo]
          -h, --help                    Print help
          -V, --version                 Print version

        Reads:   a model and token rows
        Writes:  a model
        Example: sft --config configs/sft.toml --set seed=7
        ");
    }
}
