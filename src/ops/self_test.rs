//! Kernels that use what drivers get wrong are tried when a device is opened.
//!
//! Subgroups, f16 and cooperative matrices have miscompiled on shipping drivers, and a wrong kernel
//! trains on without a word. So each such kernel that would be used runs once on a small awkward
//! shape against the operation's f64 reference; one that fails is left out, and the next default
//! takes its place. Kernels without special needs are what the others fall back to.

use crate::error::Result;
use crate::gpu::{Checks, Gpu};
use crate::kernel::{Pass, Target, Variant, VariantId};
use crate::ops::case::{OpCase, size};
use crate::ops::trial::{Fault, Replacement, Trial};
use crate::ops::values::Values;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// Most elements of a trial's shape, as a product of its numbers: enough for a few tiles, and the
/// reference costs nothing to speak of.
const MOST: usize = 1 << 13;

/// Tries every kernel with special needs that this device would use, and demotes those that are
/// wrong; what would be used instead is tried in turn. `report` hears of each.
///
/// # Errors
/// When the device is lost.
///
/// # Panics
/// When something else holds the device.
pub fn self_test(gpu: &mut Rc<Gpu>, report: &mut dyn FnMut(&Variant, &Fault)) -> Result<()> {
    for case in super::cases() {
        for pass in case.passes {
            let mut tried: Vec<VariantId> = Vec::new();
            let next = |gpu: &Gpu, tried: &[VariantId]| {
                let all = pass.in_use(gpu.target());
                all.into_iter().find(|v| v.needs.special() && !tried.contains(&v.id()))
            };
            while let Some(variant) = next(gpu, &tried) {
                tried.push(variant.id());
                if let Some(fault) = fault_of(gpu, &case, pass, variant)? {
                    report(variant, &fault);
                    Rc::get_mut(gpu).expect("nothing else holds the device").demote(variant.path);
                }
            }
        }
    }
    Ok(())
}

/// What is wrong with a kernel at the largest small shape of its operation's case at which the pass
/// occurs; None if nothing is.
///
/// # Errors
/// When the device is lost.
pub fn fault_of(
    gpu: &Rc<Gpu>,
    case: &OpCase,
    pass: &'static Pass,
    variant: &'static Variant,
) -> Result<Option<Fault>> {
    first_fault(gpu, case, pass, variant, MOST, 1)
}

/// What is wrong with a kernel at the largest `count` shapes of its operation's case at which the
/// pass occurs, of those whose numbers have no greater product than `most`.
///
/// # Errors
/// When the device is lost.
pub fn first_fault(
    gpu: &Rc<Gpu>,
    case: &OpCase,
    pass: &'static Pass,
    variant: &'static Variant,
    most: usize,
    count: usize,
) -> Result<Option<Fault>> {
    Attempt::new(gpu, case, pass, variant).run(Values::Normal, most, count)
}

/// What is wrong with a kernel at one small shape with each kind of values but the normal ones.
///
/// # Errors
/// When the device is lost.
pub fn fault_with_values(
    gpu: &Rc<Gpu>,
    case: &OpCase,
    pass: &'static Pass,
    variant: &'static Variant,
) -> Result<Option<Fault>> {
    let attempt = Attempt::new(gpu, case, pass, variant);
    for values in Values::SPECIAL {
        let fault = attempt.run(values, MOST, 1)?;
        if fault.is_some() {
            return Ok(fault);
        }
    }
    Ok(None)
}

/// A kernel in the place of its pass', with plain kernels around it, so that only this one can be
/// wrong.
struct Attempt<'a> {
    gpu: &'a Rc<Gpu>,
    case: &'a OpCase,
    replacement: Replacement,
    plain: Target,
}

impl<'a> Attempt<'a> {
    fn new(
        gpu: &'a Rc<Gpu>,
        case: &'a OpCase,
        pass: &'static Pass,
        variant: &'static Variant,
    ) -> Self {
        let plain = Target {
            subgroups: false,
            f16: false,
            cooperative: Vec::new(),
            pinned: BTreeMap::new(),
            tuned: Arc::default(),
            ..gpu.target().clone()
        };
        Self { gpu, case, replacement: Replacement { pass, variant, checks: Checks::Off }, plain }
    }

    /// The first fault at the largest `count` shapes of a size up to `most` that run the kernel.
    fn run(&self, values: Values, most: usize, count: usize) -> Result<Option<Fault>> {
        let Self { gpu, case, replacement, plain } = self;
        let mut shapes: Vec<&[usize]> = case.shapes.to_vec();
        shapes.retain(|s| size(s) <= most && case.values_at(s).contains(&values));
        shapes.sort_by_key(|s| std::cmp::Reverse(size(s)));
        let meets = |trial: &Trial| trial.meets(plain, replacement.pass, replacement.variant);
        // Central differences cost more than a forward, so they come where nothing else shows the pass.
        let trials = shapes.iter().filter_map(|shape| {
            let forward = Trial::forward(case, shape, values, 0);
            if meets(&forward) {
                return Some(forward);
            }
            let able =
                case.differentiable_at(shape) && case.gradient_values_at(shape).contains(&values);
            able.then(|| Trial::gradient(case, shape, values, 0)).filter(meets)
        });
        for trial in trials.take(count) {
            let fault = trial.run(gpu, plain, Some(replacement))?;
            if fault.is_some() {
                return Ok(fault);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{ANY, Needs, Takes};
    use crate::ops::case::tests::gpu;

    const SCALE: &str = include_str!("../../shaders/scale/forward_1_naive.wgsl");

    fn scale(path: &'static str, source: String) -> Variant {
        let (source, tile) = (source.leak(), [256, 1, 1]);
        Variant {
            path,
            source,
            needs: Needs::NONE,
            tile,
            tile_name: "",
            constants: &[],
            default_on: ANY,
            takes: Takes::WORDS,
            tolerance: 0.0,
        }
    }

    #[test]
    fn self_test_finds_a_kernel_that_is_wrong_here() {
        let wrong = SCALE.replace("FACTOR * x[i]", "FACTOR * x[i] * 1.001");
        let variants = vec![
            scale("scale/forward_1_naive.wgsl", SCALE.into()),
            scale("scale/forward_2_wrong.wgsl", wrong),
        ];
        let pass: &'static Pass =
            Box::leak(Box::new(Pass { op: "scale", name: "forward", variants: variants.leak() }));
        let gpu = gpu();
        let case = crate::ops::scale::case();
        assert!(fault_of(&gpu, &case, pass, &pass.variants[0]).unwrap().is_none());
        let fault = fault_of(&gpu, &case, pass, &pass.variants[1]).unwrap().unwrap();
        assert!(fault.to_string().contains("instead of"), "{fault}");
        // Once it is demoted, the other is the default kernel.
        let mut target = gpu.target().clone();
        assert_eq!(pass.default_for(&target, &[]).unwrap().number(), 2);
        target.demoted.insert("scale/forward_2_wrong.wgsl");
        assert_eq!(pass.default_for(&target, &[]).unwrap().number(), 1);
    }

    #[test]
    fn self_test_passes_on_the_adapter_of_the_tests() {
        let mut found = Vec::new();
        self_test(&mut gpu(), &mut |v, fault| found.push(format!("{}: {fault}", v.path))).unwrap();
        assert_eq!(found, Vec::<String>::new());
    }
}
