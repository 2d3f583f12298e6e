//! How a run went so far, in as many points as a chart can show: kept from metrics lines as they are written, so that a page of the run
//! can be made at any time without reading them again. Memory does not grow with the run.

use page::Thinned;
use serde::Deserialize;
use serde_json::Value;

use crate::report::metrics::DensityHistogram;

/// Stretches of a curve: a chart is 400 wide, and each gives two points.
const STRETCHES: usize = 150;

/// A number of a run over tokens.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    /// Its name in metrics lines.
    name: &'static str,
    /// (tokens, number) of lines of training.
    pub(crate) training: Thinned,
    /// The same of evaluations on held-out rows.
    pub(crate) held_out: Thinned,
}

impl Curve {
    fn new(name: &'static str) -> Curve {
        Curve { name, training: Thinned::new(STRETCHES), held_out: Thinned::new(STRETCHES) }
    }
}

/// Everything that is shown over tokens.
#[derive(Clone, Debug)]
pub(crate) struct Curves {
    pub(crate) loss: Curve,
    pub(crate) l0: Curve,
    pub(crate) explained_variance: Curve,
    pub(crate) dead_fraction: Curve,
    /// Rows a second, in steps.
    pub(crate) tokens_per_s: Curve,
    /// The same by the clock.
    pub(crate) tokens_per_s_wall: Curve,
    /// How often features fired at the last evaluation, and after how many tokens that was.
    pub(crate) density: Option<(u64, DensityHistogram)>,
    /// Rows trained on.
    pub(crate) tokens: u64,
}

/// What else is looked at in a line.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    kind: String,
    tokens: u64,
    density: Option<DensityHistogram>,
}

impl Curves {
    pub(crate) fn new() -> Curves {
        Curves {
            loss: Curve::new("loss"),
            l0: Curve::new("l0"),
            explained_variance: Curve::new("explained_variance"),
            dead_fraction: Curve::new("dead_fraction"),
            tokens_per_s: Curve::new("tokens_per_s"),
            tokens_per_s_wall: Curve::new("tokens_per_s_wall"),
            density: None,
            tokens: 0,
        }
    }

    /// Adds a metrics line, whichever version has written it: what it lacks is left out.
    pub(crate) fn add(&mut self, line: &Value) {
        let Ok(head) = Head::deserialize(line) else { return };
        let held_out = head.kind == "eval";
        self.tokens = self.tokens.max(head.tokens);
        if let Some(density) = head.density {
            self.density = Some((head.tokens, density));
        }
        let curves = [
            &mut self.loss,
            &mut self.l0,
            &mut self.explained_variance,
            &mut self.dead_fraction,
            &mut self.tokens_per_s,
            &mut self.tokens_per_s_wall,
        ];
        for curve in curves {
            if let Some(number) = line[curve.name].as_f64() {
                let curve = if held_out { &mut curve.held_out } else { &mut curve.training };
                curve.push(head.tokens as f64, number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_kinds_and_of_older_versions_are_taken() {
        let mut curves = Curves::new();
        let silent = serde_json::json!({"silent": 3, "half_decades": vec![0; 16]});
        for line in [
            serde_json::json!({"step": 0, "tokens": 10, "loss": 3.5, "l0": 7.0}),
            serde_json::json!({"kind": "train", "tokens": 20, "loss": 2.5, "explained_variance": null}),
            serde_json::json!({"kind": "eval", "tokens": 20, "loss": 2.75, "density": silent}),
            serde_json::json!({"step": 7}),
            serde_json::json!("torn"),
        ] {
            curves.add(&line);
        }
        assert_eq!(curves.loss.training.points(), [(10.0, 3.5), (20.0, 2.5)]);
        assert_eq!(curves.loss.held_out.points(), [(20.0, 2.75)]);
        assert!(curves.explained_variance.training.points().is_empty());
        assert_eq!(curves.density.map(|(tokens, density)| (tokens, density.silent)), Some((20, 3)));
        assert_eq!(curves.tokens, 20);
    }
}
