//! Signals: the first asks the stage to stop after its step, the second ends it at once.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use nix::sys::signal::SigSet;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// A signal that asks a run to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// Ctrl-C.
    Int,
    /// `kill`, Kubernetes, systemd.
    Term,
    /// What schedulers send some time before they take the machine away.
    Usr1,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Int, Self::Term, Self::Usr1];

    /// 128 + the signal's number: 130, 143 or 138.
    pub fn exit_code(self) -> u8 {
        128 + self.number() as u8
    }

    /// As the system has it.
    pub fn number(self) -> i32 {
        match self {
            Self::Int => SIGINT,
            Self::Term => SIGTERM,
            Self::Usr1 => SIGUSR1,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int => "SIGINT",
            Self::Term => "SIGTERM",
            Self::Usr1 => "SIGUSR1",
        })
    }
}

/// Returned by a stage that stopped because of a signal, after saving what it needs to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted(pub Signal);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by {}; run the same command again to go on", self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Tells whether a signal has come. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    /// The signal's number, 0 for none.
    received: Arc<AtomicUsize>,
    /// Whether the next signal ends the process.
    last_warning: Arc<AtomicBool>,
    /// The number that [`agree`](Self::agree) has set, or `None` for a process on its own.
    agreed: Option<Arc<AtomicUsize>>,
}

impl Interrupt {
    /// One that no signal sets: for tests and for library use.
    pub fn none() -> Self {
        Self::default()
    }

    /// Listens for `signals` from now on. A second signal ends the process at once with that signal's exit
    /// code.
    ///
    /// A thread of its own receives them: the calling thread, and those it starts from now on, do not. The kernel writes what
    /// it needs to go on below the stack pointer of the thread that it interrupts, and oneDNN's matrix product for AVX-512
    /// (3.8, fp32, long sums) has its stack pointer at a buffer on the heap meanwhile (`mov rsp, ws` in
    /// `jit_avx512_common_gemm_f32`): a signal at that moment writes over what lies before it, the training state it may be.
    ///
    /// # Errors
    /// If the operating system refuses a handler or the thread.
    pub fn install(signals: &[Signal]) -> io::Result<Self> {
        let interrupt = Self::none();
        for signal in signals {
            let number = signal.number();
            // In this order: the shutdown looks at the flag before the same signal sets it.
            let code = i32::from(signal.exit_code());
            flag::register_conditional_shutdown(number, code, Arc::clone(&interrupt.last_warning))?;
            flag::register_usize(number, Arc::clone(&interrupt.received), number as usize)?;
            flag::register(number, Arc::clone(&interrupt.last_warning))?;
        }
        receive_elsewhere(signals)?;
        Ok(interrupt)
    }

    /// The signal that has come, if any; of several processes the one they have agreed on.
    pub fn requested(&self) -> Option<Signal> {
        let number = self.agreed.as_ref().unwrap_or(&self.received).load(Ordering::SeqCst);
        Signal::ALL.into_iter().find(|signal| signal.number() as usize == number)
    }

    /// From now on [`check`](Self::check) knows of a signal only once all processes of the job do, by [`agree`](Self::agree): so
    /// they stop at the same place.
    pub fn stop_together(&mut self) {
        self.agreed = Some(Arc::default());
    }

    /// From now on a signal counts by itself again.
    pub fn stop_alone(&mut self) {
        self.agreed = None;
    }

    /// Lets `most` find the largest signal number that any process has received, and takes that for this process's.
    ///
    /// # Errors
    /// That of `most`.
    pub fn agree<E>(&self, most: impl FnOnce(usize) -> Result<usize, E>) -> Result<(), E> {
        if let Some(agreed) = &self.agreed {
            agreed.store(most(self.received.load(Ordering::SeqCst))?, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Behaves from now on as if the signal had come: for tests and for stages that stop themselves.
    pub fn request(&self, signal: Signal) {
        self.received.store(signal.number() as usize, Ordering::SeqCst);
    }

    /// Forgets the signal: for programs that only end what they were doing.
    pub fn clear(&self) {
        self.received.store(0, Ordering::SeqCst);
        self.last_warning.store(false, Ordering::SeqCst);
    }

    /// An error if a signal has come, to be returned where stopping loses nothing.
    ///
    /// # Errors
    /// [`Interrupted`] with the signal.
    pub fn check(&self) -> Result<(), Interrupted> {
        self.requested().map_or(Ok(()), |signal| Err(Interrupted(signal)))
    }
}

/// Has a thread that does nothing else receive `signals`, and the calling one not.
fn receive_elsewhere(signals: &[Signal]) -> io::Result<()> {
    let mut set = SigSet::empty();
    for signal in signals {
        set.add(nix::sys::signal::Signal::try_from(signal.number())?);
    }
    // Blocked first, so that the thread has them blocked from its beginning until it lets them in.
    set.thread_block()?;
    let (ready, listens) = mpsc::channel();
    let listen = move || {
        // It is not sent only where nobody waits for it any more.
        let _ = ready.send(set.thread_unblock());
        loop {
            std::thread::park();
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
    listens.recv().map_err(io::Error::other)??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_by_clones_and_becomes_an_error() {
        let interrupt = Interrupt::none();
        let clone = interrupt.clone();
        assert_eq!(interrupt.requested(), None);
        assert_eq!(interrupt.check(), Ok(()));
        clone.request(Signal::Usr1);
        assert_eq!(interrupt.requested(), Some(Signal::Usr1));
        assert_eq!(
            interrupt.check().unwrap_err().to_string(),
            "stopped by SIGUSR1; run the same command again to go on"
        );
        interrupt.clear();
        assert_eq!(clone.requested(), None);
    }

    #[test]
    fn the_thread_that_listens_and_those_it_starts_receive_no_signal() {
        let blocked = |signal: Signal| {
            let number = nix::sys::signal::Signal::try_from(signal.number()).unwrap();
            SigSet::thread_get_mask().unwrap().contains(number)
        };
        std::thread::spawn(move || {
            assert!(!blocked(Signal::Usr1));
            let interrupt = Interrupt::install(&[Signal::Usr1]).unwrap();
            assert!(blocked(Signal::Usr1) && !blocked(Signal::Term));
            assert!(std::thread::spawn(move || blocked(Signal::Usr1)).join().unwrap());
            // It comes all the same, where this thread is busy.
            let own = nix::unistd::Pid::this();
            nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGUSR1).unwrap();
            while interrupt.requested().is_none() {
                std::hint::spin_loop();
            }
            assert_eq!(interrupt.requested(), Some(Signal::Usr1));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn processes_that_stop_together_see_no_signal_before_all_do() {
        let mut interrupt = Interrupt::none();
        interrupt.stop_together();
        interrupt.request(Signal::Term);
        assert_eq!(interrupt.check(), Ok(()));
        // Another process has received a larger number.
        interrupt.agree(|own| Ok::<_, ()>(own.max(Signal::Term.number() as usize))).unwrap();
        assert_eq!(interrupt.check(), Err(Interrupted(Signal::Term)));
        assert_eq!(interrupt.agree(|_| Err("gone")), Err("gone"));
        interrupt.stop_alone();
        assert_eq!(interrupt.check(), Err(Interrupted(Signal::Term)));
        // On its own there is nothing to agree on.
        let alone = Interrupt::none();
        alone.agree(|_| -> Result<usize, ()> { unreachable!("nobody to ask") }).unwrap();
    }
}
