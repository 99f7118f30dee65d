//! Running the real binaries, as a user would.

use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsStr;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A binary of the workspace, from the target directory the running test was built in. Builds it where it is missing:
/// `make test` has built them all, `cargo test -p temper-tests` alone has not.
///
/// # Errors
/// If it is missing and cannot be built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("where this test is")?;
    // target/release/deps/<test>
    let release = test.parent().and_then(Path::parent).context("no target directory")?;
    let path = release.join(name);
    if !path.exists() {
        let target = release.parent().context("no target directory")?;
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--package", name])
            .env("CARGO_TARGET_DIR", target)
            .current_dir(crate::fixtures::root())
            .status()?;
        ensure!(
            built.success() && path.exists(),
            "{}: not there and not built; run `make build`",
            path.display()
        );
    }
    Ok(path)
}

/// A command in a directory of its own.
///
/// Progress and logs of a stage go to stderr, so both streams are kept whole.
#[derive(Debug)]
pub struct Stage<'a> {
    name: &'a str,
    dir: &'a Path,
    args: Vec<String>,
    wrapper: Option<&'static str>,
    rank: Option<Rank>,
}

/// One of several processes.
#[derive(Debug, Clone, Copy)]
struct Rank {
    number: usize,
    size: usize,
    port: u16,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// What ran, for messages.
    pub command: String,
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl<'a> Stage<'a> {
    /// The binary `name`, to be run in `dir`.
    #[must_use]
    pub fn new(name: &'a str, dir: &'a Path) -> Self {
        Self { name, dir, args: Vec::new(), wrapper: None, rank: None }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Lets no file grow beyond `blocks` of 1024 bytes: the nearest an ordinary user comes to a full disk.
    #[must_use]
    pub fn small_disk(mut self, blocks: &'static str) -> Self {
        self.wrapper = Some(blocks);
        self
    }

    /// Starts it as so many processes on one thread each, as a launcher does; rank 0 comes first.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn start_ranks(mut self, size: usize) -> Result<Vec<Running>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        drop(listener);
        let start = |rank| {
            self.rank = Some(Rank { number: rank, size, port });
            self.start()
        };
        (0..size).map(start).collect()
    }

    fn command(&self) -> Result<Command> {
        let path = binary(self.name)?;
        let mut command = if let Some(blocks) = self.wrapper {
            // a write beyond the limit fails with EFBIG only where SIGXFSZ is ignored, and exec keeps it ignored
            let mut shell = Command::new("bash");
            shell.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""));
            shell.arg(path);
            shell
        } else {
            Command::new(path)
        };
        command.args(&self.args).current_dir(self.dir).stdin(Stdio::null());
        // Results are compared bit for bit, and the number of threads decides the order of sums.
        command.env("OMP_NUM_THREADS", "2").env("NO_COLOR", "1").env_remove("RUST_BACKTRACE");
        for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
            command.env_remove(name);
        }
        if let Some(Rank { number, size, port }) = self.rank {
            command.env("RANK", number.to_string()).env("LOCAL_RANK", number.to_string());
            command.env("WORLD_SIZE", size.to_string()).env("OMP_NUM_THREADS", "1");
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        }
        Ok(command)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self) -> Result<Outcome> {
        let output = self.command()?.output().with_context(|| self.name.to_owned())?;
        Ok(self.outcome(&output))
    }

    /// Runs it and expects success.
    ///
    /// # Errors
    /// Anything but exit code 0; the message holds both streams.
    pub fn succeed(&self) -> Result<Outcome> {
        let outcome = self.run()?;
        ensure!(outcome.code() == Some(0), "{outcome}");
        Ok(outcome)
    }

    /// Runs it and expects `code` and an error that holds each of `parts`, without any trace of a panic.
    ///
    /// # Errors
    /// Another code, or a part that is not there; the message holds both streams.
    pub fn fail(&self, code: i32, parts: &[&str]) -> Result<Outcome> {
        let outcome = self.run()?;
        ensure!(outcome.code() == Some(code), "expected exit code {code}\n{outcome}");
        outcome.expect_error(parts)?;
        Ok(outcome)
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self) -> Result<Running> {
        let child = self
            .command()?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| self.name.to_owned())?;
        Ok(Running { child: Some(child), command: self.describe() })
    }

    fn outcome(&self, output: &Output) -> Outcome {
        Outcome::new(self.describe(), output)
    }

    fn describe(&self) -> String {
        format!("{} {}", self.name, self.args.join(" "))
    }
}

impl Outcome {
    fn new(command: String, output: &Output) -> Self {
        Self {
            command,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The exit code; none where a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Expects an `error:` line, each of `parts` from it on, and nothing that only a programmer could read.
    ///
    /// # Errors
    /// Says which part is not there.
    pub fn expect_error(&self, parts: &[&str]) -> Result<()> {
        let at = self.stderr.find("error:");
        ensure!(at.is_some(), "no `error:` line\n{self}");
        let error = &self.stderr[at.unwrap_or_default()..];
        for part in parts {
            ensure!(error.contains(part), "the error does not say {part:?}\n{self}");
        }
        for trace in
            ["panicked at", "RUST_BACKTRACE", "Exception raised from", "frame #0", ".cpp:", ".cc:"]
        {
            ensure!(!self.stderr.contains(trace), "the error holds {trace:?}\n{self}");
        }
        Ok(())
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "$ {}\n[{}]\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}

/// A started command, killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    command: String,
}

impl Running {
    fn child(&mut self) -> Result<&mut Child> {
        self.child.as_mut().context("already ended")
    }

    /// Its process id.
    ///
    /// # Errors
    /// If it has ended.
    pub fn id(&mut self) -> Result<u32> {
        Ok(self.child()?.id())
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child()?.try_wait()?.is_some())
    }

    /// Waits until `ready` holds or the command ends; says whether it still runs.
    ///
    /// # Errors
    /// If nothing happens for two minutes.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> Result<bool> {
        let start = Instant::now();
        while !ready() {
            if self.ended()? {
                return Ok(false);
            }
            ensure!(start.elapsed() < Duration::from_mins(2), "{}: nothing happens", self.command);
            sleep(Duration::from_millis(5));
        }
        Ok(!self.ended()?)
    }

    /// Waits for the next line of its standard output, without its end.
    ///
    /// # Errors
    /// If it ends without one; the message holds what it said.
    #[expect(clippy::unbuffered_bytes, reason = "what is behind the line is left for `finish`")]
    pub fn line(&mut self) -> Result<String> {
        let out = self.child()?.stdout.as_mut().context("no standard output")?;
        let mut line = Vec::new();
        for byte in out.bytes() {
            match byte? {
                b'\n' => return Ok(String::from_utf8(line)?),
                byte => line.push(byte),
            }
        }
        let child = self.child.take().context("already ended")?;
        bail!("no line came\n{}", Outcome::new(self.command.clone(), &child.wait_with_output()?))
    }

    /// Sends a signal by name, `TERM` or `USR1`.
    ///
    /// # Errors
    /// If `kill` fails.
    pub fn signal(&mut self, name: impl AsRef<OsStr>) -> Result<()> {
        let id = self.child()?.id().to_string();
        let sent = Command::new("kill").arg("-s").arg(name).arg(id).status()?;
        ensure!(sent.success(), "kill failed");
        Ok(())
    }

    /// SIGKILL: no chance to clean up. Returns once the process is gone.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn kill(mut self) -> Result<()> {
        let mut child = self.child.take().context("already ended")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn finish(mut self) -> Result<Outcome> {
        let child = self.child.take().context("already ended")?;
        Ok(Outcome::new(self.command.clone(), &child.wait_with_output()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // a test that fails must not leave a training run behind; it may have ended by itself
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
