//! The stages of a run, in the order of THE-X, and what each of them trains.

use serde::{Deserialize, Serialize};

use super::{bert::Part, ops::Bounds};

/// Range that scores are kept in while they are trained; the numerator of the largest is 729.
pub const SCORES: Bounds = Bounds { low: -16.0, high: 16.0 };
/// Range of the sums that the first estimators are made for.
pub const SUMS: Bounds = Bounds { low: 0.25, high: 2000.0 };

/// A stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The task alone, nothing replaced.
    Finetune,
    /// The head reads the pooled row without the pooler's dense layer and tanh.
    Pooler,
    /// GELU becomes ReLU.
    Relu,
    /// Softmax becomes the estimator.
    Softmax,
    /// The task, with real LayerNorm still.
    Task,
    /// LayerNorm becomes an affine map, one after another.
    LayerNorm,
    /// Everything is trained with a price on scores and sums outside their ranges.
    Range,
    /// The estimators are made anew for the ranges that came out, and everything is trained once more.
    Final,
}

/// How a stage is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Part of all updates.
    pub share: f64,
    /// Factor of the learning rate.
    pub rate: f32,
    /// Weight of the labels.
    pub task: f32,
    /// Weight of the teacher's outputs.
    pub teacher: f32,
    /// Weight of the teacher's hidden states.
    pub hidden: f32,
    /// Price of scores and sums outside their ranges.
    pub penalty: f32,
}

impl Stage {
    /// The stages of `finetune`.
    pub const FINETUNE: &'static [Self] = &[Self::Finetune];
    /// The stages of `approximate`.
    pub const APPROXIMATE: &'static [Self] =
        &[Self::Pooler, Self::Relu, Self::Softmax, Self::Task, Self::LayerNorm, Self::Range, Self::Final];

    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finetune => "finetune",
            Self::Pooler => "pooler",
            Self::Relu => "relu",
            Self::Softmax => "softmax",
            Self::Task => "task",
            Self::LayerNorm => "layer-norm",
            Self::Range => "range",
            Self::Final => "final",
        }
    }

    /// How it is trained.
    pub fn recipe(self) -> Recipe {
        let recipe =
            |share, rate, task, teacher, hidden, penalty| Recipe { share, rate, task, teacher, hidden, penalty };
        match self {
            Self::Finetune => recipe(1.0, 1.0, 1.0, 0.0, 0.0, 0.0),
            Self::Pooler => recipe(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            Self::Relu => recipe(0.10, 2.0, 0.2, 1.0, 1.0, 0.0),
            Self::Softmax => recipe(0.15, 4.0, 0.2, 1.0, 1.0, 0.1),
            Self::Task => recipe(0.05, 1.0, 0.5, 1.0, 0.5, 0.1),
            Self::LayerNorm => recipe(0.30, 4.0, 0.2, 1.0, 1.0, 0.1),
            Self::Range => recipe(0.20, 4.0, 0.5, 1.0, 1.0, 0.5),
            Self::Final => recipe(0.20, 2.0, 0.5, 1.0, 0.5, 0.5),
        }
    }

    /// Whether a part is trained; `active` is the normalisation that is being replaced.
    pub fn trains(self, part: Part, active: usize) -> bool {
        match self {
            // The paper freezes all but the one map; what lies before it adapts as well here, which loses far less.
            Self::LayerNorm => !matches!(part, Part::Norm(n) if n > active),
            _ => true,
        }
    }
}

/// Updates of each stage: `total` cut in the proportion of the shares.
pub fn updates(stages: &[Stage], total: usize) -> Vec<usize> {
    let shares: f64 = stages.iter().map(|s| s.recipe().share).sum();
    let mut done = 0;
    let mut sum = 0.0;
    stages
        .iter()
        .map(|stage| {
            sum += stage.recipe().share;
            let end = (sum / shares * total as f64).round() as usize;
            let steps = end - done;
            done = end;
            steps
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stages_take_all_updates() {
        for total in [0, 1, 7, 1000] {
            for stages in [Stage::FINETUNE, Stage::APPROXIMATE] {
                assert_eq!(updates(stages, total).iter().sum::<usize>(), total);
            }
        }
        assert_eq!(updates(Stage::APPROXIMATE, 1000)[0], 0);
    }
}
