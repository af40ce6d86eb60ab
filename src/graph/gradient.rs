//! The tape and the derivative: gradients are calls appended to the same graph.
//!
//! The gradient of a parameter is persistent state: gradient kernels always *add* to it, and the
//! optimizer zeroes it. The gradient of any other variable is a temporary: the first contribution
//! writes it, later ones add to it (the kernels' `ACCUMULATE` constant). Because calls run in
//! push order, adding in place is safe exactly when no other pending gradient lies in the same
//! memory; [`Graph::grad_into`] checks that and copies otherwise.

use super::{Graph, Role, Var};
use crate::kernel::{Const, Pass, SOFTWARE, Takes};
use crate::variant;

/// Where a gradient kernel writes: `accumulate` says whether it adds to what is there.
#[derive(Debug, Clone, Copy)]
pub struct Sink {
    /// The gradient variable.
    pub var: Var,
    /// Add to the present value instead of overwriting it.
    pub accumulate: bool,
}

impl Sink {
    /// The constant of gradient kernels that says so.
    pub fn constant(&self) -> (&'static str, Const) {
        ("ACCUMULATE", self.accumulate.into())
    }
}

/// Appends the derivative of an operation, given the gradient of its output.
type Backward = dyn Fn(&mut Graph, Var);

/// An operation on the tape.
pub(super) struct Record {
    output: Var,
    backward: Box<Backward>,
}

/// Suffix of a parameter's gradient state.
pub const GRAD: &str = ".grad";

/// Where two gradients meet: the only kernel that the graph calls by itself.
pub static ACCUMULATE: Pass = Pass {
    op: "add",
    name: "accumulate",
    variants: &[
        variant!("add/accumulate_1_naive.wgsl", tile: [256, 1, 1]),
        variant!("add/accumulate_2_vec4.wgsl", tile: [1024, 1, 1], default_on: SOFTWARE)
            .taking(Takes { quads: &[0, 1], ..Takes::WORDS }),
    ],
};

impl Graph {
    /// Puts an operation on the tape. Its output needs a gradient if any of `inputs` does;
    /// `backward` receives the gradient of `output`, if anything depends on it, and appends calls
    /// that write to [`Graph::grad_into`] of the inputs.
    ///
    /// # Panics
    /// When the output is a view: record the variable whose memory it is and return a view of that.
    #[track_caller]
    pub fn record(
        &mut self,
        op: &'static str,
        inputs: &[Var],
        output: Var,
        backward: impl Fn(&mut Graph, Var) + 'static,
    ) {
        if inputs.iter().any(|&v| self.needs_grad(v)) {
            let name = &self.info(output).name;
            assert_eq!(self.base(output), output, "{op}: the output {name} is a view");
            self.vars[output.index()].needs_grad = true;
            self.tape.push(Record { output, backward: Box::new(backward) });
        }
    }

    /// Where to put a contribution to the gradient of `var`; None if none is wanted.
    ///
    /// # Panics
    /// When the operation that made `var` was differentiated already.
    #[track_caller]
    pub fn grad_into(&mut self, var: Var) -> Option<Sink> {
        if !self.needs_grad(var) {
            return None;
        }
        if let Role::View { base, start } = self.info(var).role {
            let whole = self.grad_into(base)?;
            return Some(self.sink_of_view(var, start, whole));
        }
        self.assert_open(var);
        if matches!(self.info(var).role, Role::State) {
            let name = format!("{}{GRAD}", self.info(var).name);
            let shape = self.shape(var).to_vec();
            let grad = self.state(&name, &shape);
            self.set_grad(var, Some(grad));
            return Some(Sink { var: grad, accumulate: true });
        }
        let name = format!("d {}", self.info(var).name);
        let shape = self.shape(var).to_vec();
        let Some(&present) = self.grads.get(&var) else {
            let grad = self.temp(&name, &shape);
            self.set_grad(var, Some(grad));
            return Some(Sink { var: grad, accumulate: false });
        };
        // A seed is an input or a constant: the next run needs it unchanged.
        let memory = self.base(present);
        let seed = !matches!(self.info(memory).role, Role::Temp);
        let shared = self.grads_in[&memory] > 1;
        if shared || seed {
            let copy = self.temp(&name, &shape);
            self.accumulate(present, Sink { var: copy, accumulate: false });
            self.set_grad(var, Some(copy));
            return Some(Sink { var: copy, accumulate: true });
        }
        Some(Sink { var: present, accumulate: true })
    }

    /// Passes `grad` on unchanged as a contribution to the gradient of `var`, without a copy
    /// where that is safe.
    ///
    /// # Panics
    /// As [`Graph::grad_into`].
    #[track_caller]
    pub fn grad_pass(&mut self, var: Var, grad: Var) {
        let base = self.base(var);
        let fresh = self.needs_grad(base)
            && !self.grads.contains_key(&base)
            && self.info(var).len() == self.info(base).len()
            && !matches!(self.info(base).role, Role::State);
        if fresh {
            self.assert_open(base);
            let shape = self.shape(base).to_vec();
            let grad = if self.shape(grad) == shape { grad } else { self.view(grad, &shape) };
            self.set_grad(base, Some(grad));
        } else if let Some(sink) = self.grad_into(var) {
            self.accumulate(grad, sink);
        }
    }

    fn set_grad(&mut self, var: Var, grad: Option<Var>) {
        let before = match grad {
            Some(grad) => {
                *self.grads_in.entry(self.base(grad)).or_default() += 1;
                self.grads.insert(var, grad)
            }
            None => self.grads.remove(&var),
        };
        if let Some(before) = before {
            let memory = self.base(before);
            *self.grads_in.get_mut(&memory).expect("counted when it was set") -= 1;
        }
    }

    #[track_caller]
    fn assert_open(&self, var: Var) {
        assert!(
            !self.info(var).differentiated,
            "`{}` was differentiated already: backward() walks each operation once, so this gradient \
             would be lost. Add the losses and call backward() of the sum, or hand all of them to \
             one backward_from().",
            self.info(var).name
        );
    }

    /// Adds `x` to the sink, or copies it there.
    pub(crate) fn accumulate(&mut self, x: Var, sink: Sink) {
        let n = self.info(x).len();
        let constants = [("N", n.into()), sink.constant()];
        self.call(&ACCUMULATE, &constants, &[x], &[sink.var], [n, 1, 1]);
    }

    /// Appends the derivative of the scalar `loss` (shape `[1]`) to the graph.
    ///
    /// # Panics
    /// When `loss` is not a scalar, does not depend on anything that needs a gradient, or an
    /// operation on the way was differentiated by an earlier call already. What is
    /// appended after a derivative has a derivative of its own, whose gradients of parameters and
    /// inputs add to those that are there.
    #[track_caller]
    pub fn backward(&mut self, loss: Var) {
        assert_eq!(
            self.info(loss).len(),
            1,
            "backward starts from a scalar, not {:?}",
            self.shape(loss)
        );
        let one = self.constant("one", &[1], &[1.0]);
        self.backward_from(&[(loss, one)]);
    }

    /// Appends the derivative for given gradients of several variables: (variable, its gradient).
    ///
    /// # Panics
    /// As [`Graph::backward`].
    #[track_caller]
    pub fn backward_from(&mut self, seeds: &[(Var, Var)]) {
        let forward = self.calls.len();
        for &(var, grad) in seeds {
            assert!(
                self.needs_grad(var),
                "{} depends on nothing that needs a gradient",
                self.info(var).name
            );
            self.grad_pass(var, grad);
        }
        let tape = std::mem::take(&mut self.tape);
        for record in tape.iter().rev() {
            if let Some(&grad) = self.grads.get(&record.output) {
                (record.backward)(self, grad);
            }
            // Consumed: from here on nothing reads it, so it may be added to in place.
            self.vars[record.output.index()].differentiated = true;
            self.set_grad(record.output, None);
        }
        if let Some(op) = self.recompute.take() {
            self.run_again(op, forward);
        }
    }

    /// The gradient of a leaf (parameter or input) after [`Graph::backward`].
    ///
    /// # Panics
    /// When `leaf` is a view: take the gradient of the variable it belongs to, and a view of that.
    #[track_caller]
    pub fn grad(&self, leaf: Var) -> Option<Var> {
        assert_eq!(self.base(leaf), leaf, "{} is a view", self.info(leaf).name);
        self.grads.get(&leaf).copied()
    }
}
