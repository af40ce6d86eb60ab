//! Foreign code on untrusted files and lost devices: a panic of a library becomes an error, without a
//! backtrace on the screen, and code that descends with its input does so on a large stack of its own.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Stack of [`on_own_stack`] in bytes. Pages that are never touched cost nothing.
#[cfg(feature = "train")]
const STACK: usize = 128 << 20;

thread_local! {
    static QUIET: Cell<u32> = const { Cell::new(0) };
}

#[cfg(feature = "train")]
thread_local! {
    static OWN_STACK: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` and turns a panic in it into the reason that the panic gave. The process' panic
/// hook stays silent meanwhile, on this thread only.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() == 0 {
                before(info);
            }
        }));
    });
    QUIET.set(QUIET.get() + 1);
    // What a panic leaves half-done belongs to the library's value, which is given up with it.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(QUIET.get() - 1);
    outcome.map_err(reason)
}

fn reason(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no reason was given".to_owned())
}

/// [`caught`] on a thread with [`STACK`] bytes of stack; on such a thread already, there.
#[cfg(feature = "train")]
pub(crate) fn on_own_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    if OWN_STACK.get() {
        return caught(work);
    }
    let started = || {
        OWN_STACK.set(true);
        caught(work)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, started);
        match thread {
            Ok(thread) => thread.join().unwrap_or_else(|payload| Err(reason(payload))),
            Err(e) => Err(format!("no thread could be started: {e}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_reason() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(caught(|| -> u32 { panic!("plain") }), Err("plain".into()));
        let n = 7;
        assert_eq!(caught(|| -> u32 { panic!("number {n}") }), Err("number 7".into()));
        assert_eq!(on_own_stack(|| -> u32 { panic!("far") }), Err("far".into()));
        assert_eq!(QUIET.get(), 0);
    }

    #[test]
    fn deep_calls_have_room() {
        fn sum(depth: usize) -> usize {
            let here = std::hint::black_box([depth; 64]);
            if depth == 0 { 0 } else { here[7].min(1) + sum(depth - 1) }
        }
        // 512 bytes a call: far beyond the 2 MiB of a test's thread.
        assert_eq!(on_own_stack(|| on_own_stack(|| sum(40_000))), Ok(Ok(40_000)));
    }
}
