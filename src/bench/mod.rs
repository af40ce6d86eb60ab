//! Benchmarks: the kernels of an operation against each other, and the whole training step.
//!
//! - [`op`]: one operation, from the request to the [`report`]
//! - [`shapes`], [`facts`]: what is run, what a kernel's text says
//! - [`gate`]: correctness first; [`comparison`], [`clock`], [`stats`]: then time
//! - `workload`: where they run; [`block`]: a block of samples in a process of its own
//! - [`child`]: such processes, and one for kernels that may not end
//! - [`ceiling`]: what the adapter itself can do
//! - [`report`], [`chart`], [`compare`]: what is written down, drawn and compared
//! - [`mod@step`]: forward, backward and update of a model
//! - [`mod@tune`]: the fastest kernel for each dispatch of that step; [`tuned`]: the file it is kept in

pub mod block;
pub mod candidate;
pub mod ceiling;
pub mod chart;
pub mod child;
pub mod clock;
pub mod compare;
pub mod comparison;
pub mod facts;
pub mod gate;
pub mod machine;
pub mod op;
pub mod report;
pub mod shapes;
pub mod stats;
pub mod step;
pub mod tune;
pub mod tuned;
mod workload;

#[cfg(test)]
mod tests {
    /// What a benchmark has to know of an operation stands in its case
    /// ([`BenchFacts`](crate::ops::case::BenchFacts)), so that a new one needs no line in here.
    #[test]
    fn bench_names_no_operation() {
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench");
        let mut files = 0;
        for file in std::fs::read_dir(here).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for case in crate::ops::cases() {
                let name = format!("\"{}", case.op);
                let at = code.match_indices(&name).map(|(at, _)| code.as_bytes()[at + name.len()]);
                let named = at.filter(|&next| next == b'"' || next == b'.').count();
                assert_eq!(named, 0, "{} names {}", path.display(), case.op);
            }
            files += 1;
        }
        assert!(files > 10, "{files}");
    }
}
