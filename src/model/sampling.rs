//! How the next token is chosen from its logits, in transformers' order: repetition penalty,
//! temperature, top-k, top-p, min-p.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Problem, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// Most new tokens per prompt.
    pub max_tokens: usize,
    /// 0 takes the most probable token; above, logits are divided by it and sampled.
    pub temperature: f32,
    /// Draws among the k most probable tokens; 0 for all.
    pub top_k: usize,
    /// Draws among the fewest most probable tokens that have this share of the probability together
    /// (Holtzman et al., arXiv 1904.09751); 1 for all.
    pub top_p: f32,
    /// Draws among tokens with at least this part of the largest probability (Nguyen et al., arXiv
    /// 2407.01082); 0 for all.
    pub min_p: f32,
    /// Logits of tokens that are in the text already are divided by it, or multiplied below 0 (Keskar
    /// et al., arXiv 1909.05858); 1 for none.
    pub repetition_penalty: f32,
    /// Seed for temperatures above 0.
    pub seed: u64,
}

impl Sampling {
    /// The most probable token each time.
    pub fn greedy(max_tokens: usize) -> Self {
        Self {
            max_tokens,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }

    /// What is wrong with these settings, by the names of the command line.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.max_tokens == 0 {
            problems.push(Problem::new("--max-tokens", "is 0; it must be at least 1"));
        }
        let mut check = |flag: &str, value: f32, right: bool, wanted: &str| {
            if !right {
                problems.push(Problem::new(flag, format!("is {value}; it must be {wanted}")));
            }
        };
        let Self { temperature: t, top_p, min_p, repetition_penalty: penalty, .. } = *self;
        check("--temperature", t, t >= 0.0 && t.is_finite(), "0 or a positive number");
        check("--top-p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1");
        check("--min-p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1");
        let positive = penalty > 0.0 && penalty.is_finite();
        check("--repetition-penalty", penalty, positive, "a positive number");
        let unused =
            [("--top-k", self.top_k > 0), ("--top-p", top_p < 1.0), ("--min-p", min_p > 0.0)];
        for (flag, _) in unused.iter().filter(|(_, set)| t == 0.0 && *set) {
            let what = "changes nothing at --temperature 0, which takes the most probable token";
            problems.push(Problem::new(*flag, what));
        }
        problems
    }

    /// The token behind `text`, whose logits these are.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub fn choose(&self, logits: &[f32], text: &[u32], rng: &mut ChaCha8Rng) -> Result<u32> {
        if let Some(id) = logits.iter().position(|l| !l.is_finite()) {
            return Err(Error::NonFinite(format!(
                "the model gives token {id} a logit of {}: its weights are damaged or its training diverged. Take an earlier checkpoint.",
                logits[id]
            )));
        }
        if self.repetition_penalty == 1.0 {
            return Ok(self.draw(logits, rng));
        }
        let mut penalised = logits.to_vec();
        for &id in text {
            let (before, after) = (logits[id as usize], &mut penalised[id as usize]);
            *after = match before > 0.0 {
                true => before / self.repetition_penalty,
                false => before * self.repetition_penalty,
            };
        }
        Ok(self.draw(&penalised, rng))
    }

    fn draw(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> u32 {
        let best =
            logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        if self.temperature <= 0.0 {
            return best as u32;
        }
        let weight = |l: &f32| f64::from((l - logits[best]) / self.temperature).exp();
        let mut weights: Vec<f64> = logits.iter().map(weight).collect();
        self.leave_out(&mut weights);
        let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
        for (i, &weight) in weights.iter().enumerate() {
            left -= weight;
            if left <= 0.0 && weight > 0.0 {
                return i as u32;
            }
        }
        best as u32
    }

    /// Sets the weights of tokens that are not drawn to 0; the largest is 1.
    fn leave_out(&self, weights: &mut [f64]) {
        if self.top_k > 0 || self.top_p < 1.0 {
            let mut order: Vec<usize> = (0..weights.len()).collect();
            // Equal ones in their order, so that the choice is one.
            order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
            let mut kept = if self.top_k > 0 { self.top_k.min(order.len()) } else { order.len() };
            let all: f64 = order[..kept].iter().map(|&i| weights[i]).sum();
            let mut sum = 0.0;
            let enough = order[..kept].iter().position(|&i| {
                sum += weights[i];
                sum >= f64::from(self.top_p) * all
            });
            kept = enough.map_or(kept, |at| at + 1);
            order[kept..].iter().for_each(|&i| weights[i] = 0.0);
        }
        weights.iter_mut().filter(|w| **w < f64::from(self.min_p)).for_each(|w| *w = 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    /// Probabilities 0.5, 0.25, 0.15, 0.1.
    fn logits() -> Vec<f32> {
        [0.5f32, 0.25, 0.15, 0.1].map(f32::ln).to_vec()
    }

    fn drawn(sampling: Sampling) -> BTreeSet<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        (0..400).map(|_| sampling.choose(&logits(), &[], &mut rng).unwrap()).collect()
    }

    #[test]
    fn filters_leave_out_what_is_improbable() {
        let all = Sampling { temperature: 1.0, ..Sampling::greedy(1) };
        assert_eq!(drawn(all), BTreeSet::from([0, 1, 2, 3]));
        assert_eq!(drawn(Sampling { top_k: 2, ..all }), BTreeSet::from([0, 1]));
        assert_eq!(drawn(Sampling { top_p: 0.5, ..all }), BTreeSet::from([0]));
        assert_eq!(drawn(Sampling { top_p: 0.8, ..all }), BTreeSet::from([0, 1, 2]));
        // Of the two that top-k leaves, the first has two thirds.
        assert_eq!(drawn(Sampling { top_k: 2, top_p: 0.6, ..all }), BTreeSet::from([0]));
        assert_eq!(drawn(Sampling { min_p: 0.4, ..all }), BTreeSet::from([0, 1]));
        assert_eq!(drawn(Sampling { temperature: 0.0, ..all }), BTreeSet::from([0]));
    }

    #[test]
    fn what_was_said_is_penalised() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let greedy = Sampling { repetition_penalty: 2.0, ..Sampling::greedy(1) };
        // Log-probs are below 0: -0.69 becomes -1.39, as the second's is; the third is -1.90.
        assert_eq!(greedy.choose(&logits(), &[0, 1], &mut rng).unwrap(), 0);
        assert_eq!(greedy.choose(&[1.0, 0.9, 0.1], &[0], &mut rng).unwrap(), 1);
        assert_eq!(greedy.choose(&[-1.0, -1.5], &[0, 0], &mut rng).unwrap(), 1);
        assert!(greedy.choose(&[f32::NAN, 0.0], &[], &mut rng).is_err());
    }

    #[test]
    fn settings_out_of_range_are_named_at_once() {
        let wrong = Sampling {
            max_tokens: 0,
            temperature: f32::NAN,
            top_p: 0.0,
            min_p: 2.0,
            repetition_penalty: 0.0,
            ..Sampling::greedy(0)
        };
        assert_eq!(wrong.problems().len(), 5, "{:?}", wrong.problems());
        let unused = Sampling { top_k: 4, min_p: 0.1, ..Sampling::greedy(1) };
        assert_eq!(unused.problems().len(), 2);
        assert!(Sampling::greedy(1).problems().is_empty());
    }
}
