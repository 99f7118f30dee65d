//! Libraries that panic on damaged input: their panics as errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is about to become an error: a panic hook has nothing to report then.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Runs `read`; a panic in it becomes its message. Only for code that leaves nothing half-changed behind: reading.
///
/// # Errors
/// The panic's message.
pub fn catching<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(before);
    outcome.map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_the_mark_goes() {
        assert_eq!(catching(|| 7), Ok(7));
        let failed: Result<(), _> = catching(|| {
            assert!(is_guarded());
            panic!("dictionary {}", 3)
        });
        assert_eq!(failed, Err("dictionary 3".to_owned()));
        assert!(!is_guarded());
    }
}
