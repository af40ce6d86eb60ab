//! Parameters: state that gradients are computed for, declared once by the graph that reads it.
//! Loading, saving, the optimizer, checkpoints and the memory plan go by [`Graph::parameters`].

use super::{DType, Graph, Var};

/// What a parameter holds before anything was learnt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal values of mean 0 and this standard deviation.
    Normal(f64),
    /// Ones: the gain of a norm.
    Ones,
    /// Zeros: a bias.
    Zeros,
    /// Uniform values between minus this bound and the bound.
    Uniform(f64),
}

impl Init {
    /// Normal values for a projection that writes into the residual stream of `layers` layers:
    /// `std / sqrt(2 * layers)`, so that the stream's variance does not grow with depth (Radford
    /// et al. 2019, GPT-2).
    pub fn residual(std: f64, layers: usize) -> Self {
        Self::Normal(std * (1.0 / (2.0 * layers as f64).sqrt()))
    }
}

/// A parameter as [`Graph::parameter`] declared it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// The name of its state.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// What it holds before anything was learnt.
    pub init: Init,
    /// It is in the trained set: it has a gradient, and an optimizer has moments for it.
    pub trained: bool,
}

impl Parameter {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a shape with a zero in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Weight decay takes matrices and embeddings; gains of norms and biases, which are vectors,
    /// are left alone (as TRL and transformers have it).
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// A low-rank addition to a linear layer (LoRA, arXiv 2106.09685): with A `[rank, inputs]` and B
/// `[outputs, rank]`, y = x Wᵀ + scale (x Aᵀ) Bᵀ.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Name of A.
    pub a: String,
    /// Name of B.
    pub b: String,
    /// Rows of A.
    pub rank: usize,
    /// What the addition is multiplied by.
    pub scale: f32,
}

/// The addition to a linear layer by its name.
pub(super) type Additions = Box<dyn Fn(&str) -> Option<LowRank>>;

impl Graph {
    /// Adds to linear layers what `low_rank` says for their names.
    ///
    /// # Panics
    /// When a parameter is declared already.
    #[track_caller]
    pub fn adapt(&mut self, low_rank: impl Fn(&str) -> Option<LowRank> + 'static) {
        assert!(self.parameters.is_empty(), "additions are named before the parameters");
        self.low_rank = Box::new(low_rank);
    }

    /// What is added to the linear layer of this name.
    pub fn low_rank(&self, name: &str) -> Option<LowRank> {
        (self.low_rank)(name)
    }

    /// Trains only the parameters whose names `trained` accepts. The others are read and never
    /// written: no gradient of them is computed or stored.
    ///
    /// # Panics
    /// When a parameter is declared already.
    #[track_caller]
    pub fn train_only(&mut self, trained: impl Fn(&str) -> bool + 'static) {
        assert!(self.parameters.is_empty(), "the trained set is named before the parameters");
        self.trained = Box::new(trained);
    }

    /// Reads each parameter in the type that `storage` names for it. Those that train are 32-bit
    /// floats whatever it says, since an optimizer writes them; so are vectors (norms, biases),
    /// which no kernel reads in another type and which take next to no memory.
    ///
    /// # Panics
    /// When a parameter is declared already.
    #[track_caller]
    pub fn store_as(&mut self, storage: impl Fn(&str) -> DType + 'static) {
        assert!(self.parameters.is_empty(), "storage types are named before the parameters");
        self.storage = Box::new(storage);
    }

    /// Declares a parameter: state that gradients are computed for, unless
    /// [`Graph::train_only`] leaves it out. Asking twice gives the same variable (a tied head).
    ///
    /// # Panics
    /// When the name is known with another shape or beginning.
    #[track_caller]
    pub fn parameter(&mut self, name: &str, shape: &[usize], init: Init) -> Var {
        let known = self.states.contains_key(name);
        let trained = (self.trained)(name);
        let dtype = match trained || shape.len() < 2 {
            true => DType::F32,
            false => (self.storage)(name),
        };
        let var = self.state_typed(name, shape, dtype);
        if known && let Some(earlier) = self.parameters.iter().find(|p| p.name == name) {
            assert_eq!(earlier.init, init, "parameter {name} begins differently already");
            return var;
        }
        self.vars[var.index()].needs_grad = trained;
        self.vars[var.index()].leaf = true;
        self.parameters.push(Parameter {
            name: name.to_owned(),
            shape: shape.to_vec(),
            init,
            trained,
        });
        var
    }

    /// All parameters in the order they were declared.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::GRAD;
    use crate::kernel::{Class, Target};
    use crate::ops::add::add;
    use crate::ops::nll::nll;

    fn graph() -> Graph {
        Graph::new(&Target::baseline(Class::Software))
    }

    #[test]
    fn a_parameter_is_listed_once_however_often_it_is_asked_for() {
        let mut g = graph();
        let a = g.parameter("a", &[2, 3], Init::Normal(0.1));
        let b = g.parameter("b", &[3], Init::Zeros);
        assert_eq!(g.parameter("a", &[2, 3], Init::Normal(0.1)), a);
        let names: Vec<_> = g.parameters().iter().map(|p| (p.name.as_str(), p.decays())).collect();
        assert_eq!(names, [("a", true), ("b", false)]);
        assert!(g.needs_grad(a) && g.needs_grad(b));
    }

    #[test]
    #[should_panic(expected = "begins differently")]
    fn a_parameter_begins_in_one_way() {
        let mut g = graph();
        g.parameter("a", &[2], Init::Ones);
        g.parameter("a", &[2], Init::Zeros);
    }

    #[test]
    fn what_is_not_trained_has_no_gradient() {
        let mut g = graph();
        g.train_only(|name| name == "b");
        let [a, b] = ["a", "b"].map(|name| g.parameter(name, &[3], Init::Ones));
        let sum = add(&mut g, a, b);
        let loss = nll(&mut g, sum, a);
        g.backward(loss);
        assert!(g.grad(a).is_none() && g.grad(b).is_some());
        assert!(g.vars().iter().all(|v| v.name != format!("a{GRAD}")));
        let trained: Vec<bool> = g.parameters().iter().map(|p| p.trained).collect();
        assert_eq!(trained, [false, true]);
    }

    #[test]
    fn only_matrices_that_do_not_train_are_stored_in_another_type() {
        let mut g = graph();
        g.train_only(|name| name == "trained");
        g.store_as(|_| DType::BF16);
        let dtype = |g: &mut Graph, name: &str, shape: &[usize]| {
            let var = g.parameter(name, shape, Init::Ones);
            g.info(var).dtype
        };
        assert_eq!(dtype(&mut g, "trained", &[2, 4]), DType::F32);
        assert_eq!(dtype(&mut g, "frozen", &[2, 4]), DType::BF16);
        assert_eq!(dtype(&mut g, "norm", &[4]), DType::F32);
    }

    #[test]
    #[should_panic(expected = "before the parameters")]
    fn the_trained_set_comes_first() {
        let mut g = graph();
        g.parameter("a", &[2], Init::Ones);
        g.train_only(|_| false);
    }
}
