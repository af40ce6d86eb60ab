//! The `oddgrad` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    silence_device_select();
    oddgrad::cli::run()
}

/// On Linux, Mesa puts a layer in front of Vulkan that asks the screen which GPU it uses, and
/// where there is no screen each look at the adapters writes "error: XDG_RUNTIME_DIR is invalid"
/// twice. Which adapter is used is decided here, so without a screen the layer is left out.
fn silence_device_select() {
    let unset = |name| std::env::var_os(name).is_none();
    if cfg!(target_os = "linux") && unset("XDG_RUNTIME_DIR") && unset("NODEVICE_SELECT") {
        // SAFETY: no other thread runs yet that could read the environment meanwhile.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
