//! Correctness before speed: a kernel that fails here is shown and not ranked.
//!
//! The operation's awkward shapes with fresh random inputs of every kind ([`Values`]), on grids as
//! they are and folded, every result poisoned beforehand, a guard zone behind every buffer, run
//! twice for the same bits; then, at each shape that is timed, the same results as the pass' first
//! variant.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::case::OpCase;
use crate::ops::trial::{Fault, Kind, Replacement, SMALLEST, Trial};
use crate::ops::values::Values;
use crate::program::{POISON, Program, Replay};
use std::rc::Rc;

/// How a kernel did.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Trials it went through, the failed one included.
    pub trials: usize,
    /// The first fault.
    pub fault: Option<Fault>,
}

/// Tries each of `replacements` in its place, on the awkward shapes of `case` at which its pass occurs.
/// `progress` hears which trial comes next.
///
/// # Errors
/// When the device is lost.
pub fn judge(
    gpu: &Rc<Gpu>,
    case: &OpCase,
    replacements: &[Replacement],
    seed: u64,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Verdict>> {
    let mut verdicts = vec![Verdict { trials: 0, fault: None }; replacements.len()];
    let mut attempt = |trial: Trial, what: String| -> Result<()> {
        for (replacement, verdict) in replacements.iter().zip(&mut verdicts) {
            let able = trial.meets(gpu.target(), replacement.pass, replacement.variant);
            if verdict.fault.is_none() && able {
                progress(&format!("gate: {} {what}", replacement.variant.label()));
                verdict.trials += 1;
                verdict.fault = trial.run(gpu, gpu.target(), Some(replacement))?;
            }
        }
        Ok(())
    };
    for shape in case.shapes {
        for values in case.values_at(shape) {
            let what = format!("forward {shape:?}, {values}");
            attempt(Trial::forward(case, shape, values, seed), what)?;
        }
        let what = format!("forward {shape:?}, on a folded grid");
        attempt(Trial::forward(case, shape, Values::Normal, seed).folded(), what)?;
        if !case.differentiable_at(shape) {
            continue;
        }
        for values in case.gradient_values_at(shape) {
            let what = format!("gradient {shape:?}, {values}");
            attempt(Trial::gradient(case, shape, values, seed), what)?;
        }
        let what = format!("gradient {shape:?}, added to one that is there");
        attempt(Trial::added_gradient(case, shape, seed), what.clone())?;
        let what = format!("{what}, on a folded grid");
        attempt(Trial::added_gradient(case, shape, seed).folded(), what)?;
    }
    Ok(verdicts)
}

/// Two kernels sum in different orders: they may differ this many times as much as one of them
/// from the reference.
const SLACK: f64 = 10.0;

/// The first of `replays` is the baseline, variant `number` of its pass; says where each of the
/// others writes something else than its entry of `tolerances` allows. All start from the same
/// contents; the step must have run before.
///
/// # Errors
/// When the device is lost.
pub fn same_as_first(
    program: &Program,
    replays: &[&Replay],
    number: u32,
    shape: &[usize],
    tolerances: &[f64],
) -> Result<Vec<Option<Fault>>> {
    let Some(&baseline) = replays.first() else { return Ok(Vec::new()) };
    let before = program.written(baseline)?;
    // Poison shows what a kernel leaves out, where the pass writes everything and reads nothing of
    // it. Where it adds to what is there, or writes a part, every kernel starts from `before`.
    program.poison_writes(baseline);
    program.time(baseline, 1, None)?;
    let mut want = program.written(baseline)?;
    let nan = |bits: &u32| f32::from_bits(*bits).is_nan();
    let poisoned = !want.iter().flatten().any(nan);
    if !poisoned {
        program.restore(baseline, &before);
        program.time(baseline, 1, None)?;
        want = program.written(baseline)?;
    }
    let mut faults = vec![None];
    for (replay, tolerance) in replays.iter().zip(tolerances).skip(1) {
        if poisoned {
            program.poison_writes(replay);
        } else {
            program.restore(replay, &before);
        }
        program.time(replay, 1, None)?;
        let got = program.written(replay)?;
        let kind = want.iter().zip(&got).find_map(|(w, g)| difference(w, g, SLACK * tolerance));
        faults.push(kind.map(|kind| Fault {
            shape: shape.to_vec(),
            values: Values::Normal,
            folded: false,
            place: format!("against variant {number}: result"),
            kind,
        }));
    }
    program.restore(baseline, &before);
    Ok(faults)
}

fn difference(want: &[u32], got: &[u32], allowed: f64) -> Option<Kind> {
    let value = |bits: u32| f64::from(f32::from_bits(bits));
    let scale = want.iter().fold(SMALLEST, |m, &w| m.max(value(w).abs()));
    want.iter().zip(got).enumerate().find_map(|(index, (&w, &g))| {
        let off = (value(w) - value(g)).abs() / scale;
        if w == g || off <= allowed {
            return None;
        }
        if g == POISON {
            return Some(Kind::Unwritten(index));
        }
        Some(Kind::Wrong { index, got: f32::from_bits(g), want: value(w), off, allowed })
    })
}
