//! `oddgrad tune` writes a file, and the other commands use it as long as it counts.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the command with `cache` as the folder of tuned kernels.
fn oddgrad(cache: &Path, args: &[&str]) -> (Output, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_oddgrad"))
        .args(args)
        .env("ODDGRAD_CACHE", cache)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let both = [out.stdout.clone(), out.stderr.clone()].concat();
    (out, String::from_utf8_lossy(&both).into_owned())
}

/// Kernels of AdamW in a step of nano.
fn adamw_kernels(cache: &Path, more: &[&str]) -> (String, Vec<String>) {
    let args = ["bench", "step", "--steps", "1", "--tokens", "128", "--listing"];
    let (out, text) = oddgrad(cache, &[&args[..], more].concat());
    assert!(out.status.success(), "{text}");
    let names = text.lines().filter_map(|l| l.split("adamw/").nth(1));
    let names = names.map(|l| l.trim_end_matches(')').to_owned()).collect();
    (text, names)
}

#[test]
fn tune_writes_what_the_trainer_uses_until_driver_or_kernel_change() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let args = ["tune", "--only", "adamw", "--seconds", "0.05", "--tokens", "128"];
    let (out, text) = oddgrad(cache, &args);
    assert!(out.status.success(), "{text}");
    assert!(text.contains("adamw.update") && text.contains("written"), "{text}");
    let file = std::fs::read_dir(cache).unwrap().next().unwrap().unwrap().path();
    let written = std::fs::read_to_string(&file).unwrap();

    // Whatever was faster here: the other one must be used if the file says so.
    let set = |n: u32| -> String {
        let lines = written.lines().map(|l| match l.starts_with("variant = ") {
            true => format!("variant = {n}"),
            false => l.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    for (n, name) in [(1, "update_1_naive.wgsl"), (2, "update_2_span.wgsl")] {
        std::fs::write(&file, set(n)).unwrap();
        let (_, kernels) = adamw_kernels(cache, &[]);
        assert!(kernels.len() > 30 && kernels.iter().all(|k| k == name), "{n}: {kernels:?}");
    }
    let (_, untuned) = adamw_kernels(cache, &["--untuned"]);
    let (_, pinned) = adamw_kernels(cache, &["--kernel", "adamw=1"]);
    assert!(pinned.iter().all(|k| k == "update_1_naive.wgsl"), "a pin comes first: {pinned:?}");

    // A choice that loses digits waits until it is asked for.
    let lossy = set(1).replace("dtype = \"f32\"", "dtype = \"f16\"");
    let second = lossy[lossy.find("[[choice]]").unwrap()..].to_owned();
    std::fs::write(&file, format!("{}\n{second}", set(2))).unwrap();
    for (more, name) in [(&[][..], "update_2_span.wgsl"), (&["--f16"], "update_1_naive.wgsl")] {
        let (text, kernels) = adamw_kernels(cache, more);
        assert!(kernels.iter().all(|k| k == name), "{more:?}: {kernels:?}");
        assert!(!text.contains("changes nothing"), "{text}");
    }
    std::fs::write(&file, set(2)).unwrap();
    let (text, kernels) = adamw_kernels(cache, &["--f16"]);
    assert!(kernels.iter().all(|k| k == "update_2_span.wgsl"), "{kernels:?}");
    assert!(text.contains("note: --f16 changes nothing"), "{text}");

    // Tuned to what is not the default kernel, so that the next two would show it.
    let other = if untuned[0].contains("_1_") { 2 } else { 1 };
    for (from, to) in [("driver = \"", "driver = \"old "), ("kernels = \"", "kernels = \"0")] {
        std::fs::write(&file, set(other).replace(from, to)).unwrap();
        let (text, kernels) = adamw_kernels(cache, &[]);
        assert_eq!(kernels, untuned, "{from}");
        assert!(text.contains("run `oddgrad tune` again"), "{text}");
    }
    std::fs::write(&file, "rubbish").unwrap();
    let (out, text) = oddgrad(cache, &["doctor"]);
    assert!(!out.status.success() && text.contains("--untuned"), "{text}");
}

#[test]
fn tune_names_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&["tune", "--only", "adamww"][..], "it runs adamw.update"),
        (&["tune", "--tokens", "1"], "from 61"),
        (&["tune", "--kernel", "adamw=1"], "leave it out"),
        (&["tune", "--model", "no-such"], "no-such"),
        (&["tune", "--out", "Cargo.toml/tuned.toml"], "Cargo.toml"),
        (&["bench", "step", "--tokens", "1", "--steps", "0"], "--tokens: is 1"),
        (&["bench", "step", "--tokens", "1", "--steps", "0"], "--steps: is 0"),
    ] {
        let (out, text) = oddgrad(folder.path(), args);
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}
