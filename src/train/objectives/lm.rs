//! LM: next-token prediction on plain text.
//!
//! The same loss as [`Sft`]'s; a document, or a piece of one, is a response without a prompt.

use super::sft::Sft;
use super::{Coefficients, Metric, Objective, Results, RowKind, Scored, Terms};
use crate::data::pack::PackedBatch;
use crate::graph::Graph;
use crate::train::metrics::Sums;
use crate::train::settings::Settings;
use std::sync::Arc;

/// LM's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lm(pub Sft);

pub(super) fn read(s: &mut Settings) -> Arc<dyn Objective> {
    Arc::new(Lm(Sft::read(s)))
}

impl Objective for Lm {
    fn name(&self) -> &'static str {
        "lm"
    }

    fn rows(&self) -> RowKind {
        RowKind::Texts
    }

    fn settings(&self) -> Vec<(&'static str, toml::Value)> {
        self.0.settings()
    }

    fn declare(&self, g: &mut Graph, scored: &Scored) -> Terms {
        self.0.declare(g, scored)
    }

    fn coefficients(&self, streams: &[&PackedBatch], parts: usize) -> Vec<Coefficients> {
        self.0.coefficients(streams, parts)
    }

    fn measure(&self, stream: &PackedBatch, results: &Results, sums: &mut Sums) {
        self.0.measure(stream, results, sums);
    }

    fn figures(&self, sums: &Sums) -> Vec<(&'static str, f64)> {
        self.0.figures(sums)
    }

    fn metrics(&self) -> &'static [Metric] {
        self.0.metrics()
    }
}
