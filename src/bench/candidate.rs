//! The kernels that a benchmark compares, by the names on its command line.

use crate::bench::comparison::Limits;
use crate::bench::facts::{check_contract, read_kernel};
use crate::bench::op::Request;
use crate::bench::report::{LeftOut, time};
use crate::bench::shapes::Shape;
use crate::error::{Error, Problem, Result};
use crate::gpu::{Checks, Gpu};
use crate::kernel::{Needs, Pass, Takes, Variant, VariantId};
use crate::ops::case::OpCase;
use crate::ops::trial::Replacement;

/// The case of an operation.
///
/// # Errors
/// An unknown name: says what there is.
pub fn find_case(op: &str) -> Result<OpCase> {
    let cases = crate::ops::cases();
    let names: Vec<_> = cases.iter().map(|c| c.op).collect();
    cases.into_iter().find(|c| c.op == op).ok_or_else(|| {
        let what = format!("there is no such operation; there are {}", names.join(", "));
        Error::input("unknown operation", vec![Problem::new(format!("bench {op}"), what)])
    })
}

/// The passes of a case that are asked for.
///
/// # Errors
/// An unknown pass: says what there is.
pub fn find_passes(case: &OpCase, pass: Option<&str>) -> Result<Vec<&'static Pass>> {
    let Some(wanted) = pass else { return Ok(case.passes.to_vec()) };
    let found: Vec<_> = case.passes.iter().copied().filter(|p| p.name == wanted).collect();
    if found.is_empty() {
        let names: Vec<_> = case.passes.iter().map(|p| p.name).collect();
        let what = format!("{} has the passes {}", case.op, names.join(", "));
        return Err(Error::input(
            "unknown pass",
            vec![Problem::new(format!("--pass {wanted}"), what)],
        ));
    }
    Ok(found)
}

/// A kernel of a pass with what a table calls it.
pub(super) struct Candidate {
    pub(super) replacement: Replacement,
    pub(super) label: String,
    /// Why it cannot run here, or what is wrong with it.
    pub(super) fault: Option<String>,
    /// Trials that the gate put it through.
    pub(super) trials: usize,
    slowest: Option<SlowestRun>,
}

/// How long a run took at some shape.
#[derive(Debug, Clone, Copy)]
struct SlowestRun {
    work: f64,
    seconds: f64,
}

/// A shorter run is mostly what a submission costs and says little about larger shapes.
const TELLING: f64 = 0.05;

impl Candidate {
    pub(super) fn pass(&self) -> String {
        format!("{}.{}", self.replacement.pass.op, self.replacement.pass.name)
    }

    /// Remembers a run with so many operations, or bytes, if it tells how long others will take.
    pub(super) fn took(&mut self, work: f64, seconds: f64) {
        if seconds >= TELLING && self.slowest.is_none_or(|run| run.seconds < seconds) {
            self.slowest = Some(SlowestRun { work, seconds });
        }
    }

    /// Seconds that a run should take, if a slow one was seen before.
    pub(super) fn expected(&self, work: f64) -> Option<f64> {
        self.slowest.map(|run| run.seconds * work / run.work)
    }

    pub(super) fn left_out(
        &self,
        shape: &Shape,
        took: &str,
        seconds: f64,
        limits: Limits,
    ) -> LeftOut {
        let why = format!(
            "too slow here: a run {took} {}, more than {}",
            time(seconds),
            time(limits.run)
        );
        LeftOut { pass: self.pass(), kernel: self.label.clone(), shape: shape.dims.clone(), why }
    }
}

/// True if `id` means this variant: without a tile all of a number.
fn names(id: &VariantId, v: &Variant) -> bool {
    id.number == v.number() && (id.tile.is_empty() || id.tile == v.tile_name)
}

/// Bindings that a kernel declares as vectors of four, as [`Takes::quads`] wants them.
fn quads(source: &str) -> &'static [usize] {
    let binding = |line: &str| {
        let (_, rest) = line.split_once("@binding(")?;
        let (number, rest) = rest.split_once(')')?;
        number.trim().parse().ok().filter(|_| rest.contains("array<vec4"))
    };
    let found: Vec<usize> = source.lines().filter_map(binding).collect();
    found.leak()
}

/// The kernels of a pass that the request names, each with why it cannot run here.
pub(super) fn candidates(
    gpu: &Gpu,
    request: &Request,
    pass: &'static Pass,
) -> Result<Vec<Candidate>> {
    let mut all = Vec::new();
    for v in pass.variants {
        if !request.variants.is_empty() && !request.variants.iter().any(|id| names(id, v)) {
            continue;
        }
        let fault = (!v.needs_met(gpu.target()))
            .then(|| "the adapter lacks what it needs (see the file's header)".to_owned());
        let label = v.name();
        let replacement = Replacement { pass, variant: v, checks: Checks::Off };
        all.push(Candidate { replacement, label, fault, trials: 0, slowest: None });
    }
    if let Some(own) = &request.with {
        let (path, source) = read_kernel(&own.path)?;
        check_contract(path, source, pass)?;
        let tile = own.tile.unwrap_or(pass.variants[0].tile);
        let variant: &'static Variant = Box::leak(Box::new(Variant {
            path,
            source,
            needs: Needs::NONE,
            tile,
            tile_name: "",
            constants: &[],
            default_on: &[],
            takes: Takes { quads: quads(source), ..Takes::WORDS },
            tolerance: 0.0,
        }));
        let label = own.path.file_name().map_or(path.into(), |n| n.to_string_lossy().into_owned());
        let replacement = Replacement { pass, variant, checks: Checks::On };
        all.push(Candidate { replacement, label, fault: None, trials: 0, slowest: None });
    }
    Ok(all)
}

/// # Errors
/// Variants that none of the passes has: says what there is.
pub(super) fn check_variants(variants: &[VariantId], passes: &[&Pass]) -> Result<()> {
    let there = || passes.iter().flat_map(|p| p.variants);
    let unknown = variants.iter().filter(|id| !there().any(|v| names(id, v)));
    let mut all: Vec<_> = there().map(Variant::id).collect();
    all.sort();
    all.dedup();
    let all = all.iter().map(VariantId::to_string).collect::<Vec<_>>().join(", ");
    let problems: Vec<_> = unknown
        .map(|id| Problem::new(format!("--variants {id}"), format!("is none of {all}")))
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::input("unknown variants", problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bench_expects_a_slow_kernel_to_be_slower_at_larger_shapes() {
        let pass = crate::ops::scale::case().passes[0];
        let replacement = Replacement { pass, variant: &pass.variants[0], checks: Checks::Off };
        let label = "1 naive".into();
        let mut c = Candidate { replacement, label, fault: None, trials: 0, slowest: None };
        // What a submission costs is no rate.
        c.took(1.0, 1e-4);
        assert_eq!(c.expected(1e9), None);
        c.took(1e6, 1.0);
        c.took(1e5, 0.5);
        assert_eq!(c.expected(3e7), Some(30.0));
        let shape = Shape { set: "", dims: vec![7] };
        let line = c.left_out(&shape, "would take about", 30.0, Limits::default());
        assert_eq!(line.why, "too slow here: a run would take about 30.0 s, more than 20.0 s");
    }
}
