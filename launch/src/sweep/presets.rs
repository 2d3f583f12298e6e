//! The grids that scaling laws are fitted to: IsoFLOP curves, and learning rates at the optimum of each budget.
//!
//! Compute is C = F · S, features times steps: at one batch and width the FLOP of the encoder are proportional to it.

use serde::Deserialize;
use toml::Value;

use super::values::{log_range, numbers, to_multiple};
use crate::failure::Failure;
use crate::laws;

/// A whole tile of features, to which the grid is rounded where nobody says.
const MULTIPLE: u64 = 128;

/// `[isoflop]`: for each budget some dictionaries around a centre, each with the steps that the budget leaves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Isoflop {
    /// Each C, in features × steps.
    budgets: Value,
    /// F in the middle: one for each budget, or `{ coefficient, exponent }` of C. By default `laws` say it.
    centre: Option<Value>,
    /// A laws.json whose features_opt is the centre.
    laws: Option<String>,
    /// The learning rate of each budget: one for each, or `{ coefficient, exponent }` of C. By default that of the recipe.
    lr: Option<Value>,
    /// Dictionaries for each budget.
    #[serde(default = "five")]
    points: usize,
    /// The largest is so many times the centre, and the centre as many times the smallest.
    #[serde(default = "two")]
    within: f64,
    /// Features are whole multiples of this.
    #[serde(default = "tile")]
    multiple: u64,
}

/// `[lr]`: at the best dictionary of each budget some learning rates around a centre.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lr {
    /// Each C, in features × steps.
    budgets: Value,
    /// A laws.json whose features_opt is the dictionary of a budget.
    laws: String,
    /// The learning rate in the middle: one for all budgets, one for each, or `{ coefficient, exponent }` of C. By default that of the
    /// recipe.
    centre: Option<Value>,
    /// Learning rates for each budget.
    #[serde(default = "five")]
    points: usize,
    /// The largest is so many times the centre, and the centre as many times the smallest.
    #[serde(default = "four")]
    within: f64,
    /// Features are a whole multiple of this.
    #[serde(default = "tile")]
    multiple: u64,
}

fn five() -> usize {
    5
}
fn two() -> f64 {
    2.0
}
fn four() -> f64 {
    4.0
}
fn tile() -> u64 {
    MULTIPLE
}

/// A configuration of a preset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// F.
    pub features: u64,
    /// S, from which `train.tokens` follows by the batch.
    pub steps: u64,
    /// The learning rate, where the preset says one.
    pub lr: Option<f64>,
}

impl Isoflop {
    /// Its configurations; paths are found by `place`.
    ///
    /// # Errors
    /// [`trainer::Exit::Arguments`] that names the key; those of laws.json.
    pub fn points(&self, place: &dyn Fn(&str) -> String) -> Result<Vec<Point>, Failure> {
        let budgets = numbers("isoflop.budgets", &self.budgets)?;
        let centres = match (&self.centre, &self.laws) {
            (Some(centre), None) => Law::read("isoflop.centre", centre, &budgets)?,
            (None, Some(laws)) => features_opt(&place(laws), &budgets)?,
            _ => {
                return Err(Failure::arguments(
                    "[isoflop] needs the features in the middle of each grid: give either isoflop.centre, a list or { coefficient, \
                     exponent } of the budget, or isoflop.laws, a laws.json",
                ));
            }
        };
        let rates = match &self.lr {
            Some(lr) => Law::read("isoflop.lr", lr, &budgets)?.into_iter().map(Some).collect(),
            None => vec![None; budgets.len()],
        };
        let mut points = Vec::new();
        for ((budget, centre), lr) in budgets.into_iter().zip(centres).zip(rates) {
            let name = format!("isoflop, C = {budget:e}");
            let mut features: Vec<u64> = around(&name, centre, self.within, self.points)?
                .into_iter()
                .map(|features| to_multiple(features, self.multiple))
                .collect();
            features.dedup();
            if features.len() < self.points {
                return Err(Failure::arguments(format!(
                    "{name}: {} dictionaries around {centre:.0} features are not as many multiples of {}: lower isoflop.points or \
                     isoflop.multiple, or widen isoflop.within",
                    self.points, self.multiple
                )));
            }
            for features in features {
                points.push(Point { features, steps: steps(&name, budget, features)?, lr });
            }
        }
        Ok(points)
    }
}

impl Lr {
    /// Its configurations around `lr`, that of the recipe, where it names no centre of its own.
    ///
    /// # Errors
    /// [`trainer::Exit::Arguments`] that names the key; those of laws.json.
    pub fn points(&self, lr: f64, place: &dyn Fn(&str) -> String) -> Result<Vec<Point>, Failure> {
        let budgets = numbers("lr.budgets", &self.budgets)?;
        let optimal = features_opt(&place(&self.laws), &budgets)?;
        let centres = match &self.centre {
            Some(centre) => Law::read("lr.centre", centre, &budgets)?,
            None => vec![lr; budgets.len()],
        };
        let mut points = Vec::new();
        for ((budget, features), centre) in budgets.into_iter().zip(optimal).zip(centres) {
            let name = format!("lr, C = {budget:e}");
            let features = to_multiple(features, self.multiple);
            let steps = steps(&name, budget, features)?;
            let rates = around(&name, centre, self.within, self.points)?;
            points.extend(rates.into_iter().map(|lr| Point { features, steps, lr: Some(lr) }));
        }
        Ok(points)
    }
}

/// So many numbers from `centre / within` to `centre · within`.
fn around(name: &str, centre: f64, within: f64, points: usize) -> Result<Vec<f64>, Failure> {
    if points == 1 {
        return Ok(vec![centre]);
    }
    if !(within.is_finite() && within > 1.0) {
        return Err(Failure::arguments(format!("{name}: within must be a factor above 1, and is {within}")));
    }
    log_range(name, [centre / within, centre * within], points)
}

/// The steps that a budget leaves so many features.
fn steps(name: &str, budget: f64, features: u64) -> Result<u64, Failure> {
    let steps = (budget / features as f64).round();
    if steps < 1.0 {
        return Err(Failure::arguments(format!(
            "{name}: {features} features take more than the whole budget in one step: raise the budget, or lower the centre"
        )));
    }
    Ok(steps as u64)
}

/// `coefficient · C^exponent`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Law {
    coefficient: f64,
    exponent: f64,
}

impl Law {
    fn at(self, budget: f64) -> f64 {
        self.coefficient * budget.powf(self.exponent)
    }

    /// One value for each budget.
    fn read(name: &str, value: &Value, budgets: &[f64]) -> Result<Vec<f64>, Failure> {
        let law = value.as_table().filter(|table| table.contains_key("coefficient"));
        if let Some(table) = law {
            let law: Law = table.clone().try_into().map_err(|error: toml::de::Error| {
                Failure::arguments(format!(
                    "{name}: {}: write {{ coefficient = K, exponent = E }}",
                    error.message().trim()
                ))
            })?;
            return Law::all(name, law, budgets);
        }
        let values = numbers(name, value)?;
        match values.len() {
            1 => Ok(vec![values[0]; budgets.len()]),
            len if len == budgets.len() => Ok(values),
            len => Err(Failure::arguments(format!(
                "{name} has {len} values for {} budgets: give one for each, one for all, or {{ coefficient = K, exponent = E }}",
                budgets.len()
            ))),
        }
    }

    fn all(name: &str, law: Law, budgets: &[f64]) -> Result<Vec<f64>, Failure> {
        let values: Vec<f64> = budgets.iter().map(|&budget| law.at(budget)).collect();
        if values.iter().all(|value| value.is_finite() && *value > 0.0) {
            return Ok(values);
        }
        Err(Failure::arguments(format!("{name}: {law:?} gives no number above 0 at each of the budgets {budgets:?}")))
    }
}

/// F_opt of each budget, as a laws.json has it.
fn features_opt(path: &str, budgets: &[f64]) -> Result<Vec<f64>, Failure> {
    let laws = laws::read(path)?;
    let law = Law { coefficient: laws.features_opt.coefficient.value, exponent: laws.features_opt.exponent.value };
    Law::all(path, law, budgets)
}

#[cfg(test)]
mod tests {
    use scaling::Options;
    use scaling::laws::Loss;
    use scaling::run::Run;

    use super::*;

    fn isoflop(text: &str) -> Result<Vec<Point>, Failure> {
        let preset: Isoflop = toml::from_str(text).expect("a preset");
        preset.points(&|path| path.to_owned())
    }

    #[test]
    fn an_isoflop_grid_lies_around_its_centre_and_steps_follow() {
        let points =
            isoflop("budgets = [1e6, 4e6]\ncentre = {coefficient = 1.024, exponent = 0.5}\npoints = 3\nmultiple = 64")
                .expect("points");
        let grid: Vec<_> = points.iter().map(|point| (point.features, point.steps)).collect();
        assert_eq!(grid, [(512, 1953), (1024, 977), (2048, 488), (1024, 3906), (2048, 1953), (4096, 977)]);
        let points = isoflop("budgets = {log = [1e6, 1e8], points = 3}\ncentre = [512, 1024, 2048]").expect("points");
        assert_eq!(points.len(), 15);
        assert!(points.iter().all(|point| point.features % 128 == 0 && point.lr.is_none()));
    }

    #[test]
    fn a_grid_that_cannot_be_is_refused_by_its_key() {
        for (text, said) in [
            ("budgets = [1e6]", "[isoflop] needs the features in the middle"),
            ("budgets = []\ncentre = 8", "isoflop.budgets must be numbers above 0"),
            ("budgets = [1e6, 2e6]\ncentre = [1, 2, 3]", "isoflop.centre has 3 values for 2 budgets"),
            ("budgets = [1e6]\ncentre = 128", "not as many multiples of 128"),
            ("budgets = [100]\ncentre = 1024\npoints = 1", "more than the whole budget"),
            ("budgets = [1e6]\ncentre = 1024\nwithin = 0.5", "within must be a factor above 1"),
            ("budgets = [1e6]\ncentre = {coefficient = -1, exponent = 0.5}", "no number above 0"),
        ] {
            let failure = isoflop(text).expect_err(text);
            assert!(failure.message().contains(said), "{text}: {}", failure.message());
        }
    }

    #[test]
    fn learning_rates_are_swept_at_the_optimum_that_laws_say() {
        let folder = tempfile::tempdir().expect("a folder");
        let laws = folder.path().join("laws.json");
        // F_opt = (αA/βB)^(1/(α+β)) · C^(β/(α+β)) = 1.024·√C.
        let sizes = [1e5, 1e6, 1e7, 1e8]
            .into_iter()
            .flat_map(|c: f64| [0.5, 1.0, 2.0].map(|by| (by * c.sqrt(), c.sqrt() / by)));
        let loss = |features: f64, steps: f64| 1.0 + 1.024 / features.sqrt() + 1.0 / steps.sqrt();
        let of = |(features, steps)| Run { features, steps, loss: loss(features, steps), ..Run::default() };
        let options = Options { loss: Loss::LeastSquares, replicates: 100, seed: 0, gpu: None };
        let fitted = scaling::fit(&sizes.map(of).collect::<Vec<_>>(), &options).expect("laws");
        std::fs::write(&laws, serde_json::to_vec(&fitted).expect("JSON")).expect("written");
        let preset: Lr = toml::from_str("budgets = [1e6, 4e6]\nlaws = 'laws.json'\npoints = 3").expect("a preset");
        let place = |name: &str| folder.path().join(name).display().to_string();
        let points = preset.points(1e-3, &place).expect("points");
        let rates: Vec<_> = points.iter().filter_map(|point| point.lr).collect();
        assert_eq!(points.iter().map(|point| point.features).collect::<Vec<_>>(), [1024, 1024, 1024, 2048, 2048, 2048]);
        assert_eq!((rates[0], rates[2], rates[3]), (2.5e-4, 4e-3, 2.5e-4));
        let grid: Isoflop = toml::from_str(
            "budgets = [1e6, 4e6]\nlaws = 'laws.json'\npoints = 2\nlr = {coefficient = 1.0, exponent = -0.5}",
        )
        .expect("a preset");
        let points = grid.points(&place).expect("points");
        let points: Vec<_> = points.iter().map(|point| (point.features, point.lr)).collect();
        assert_eq!(points, [(512, Some(1e-3)), (2048, Some(1e-3)), (1024, Some(5e-4)), (4096, Some(5e-4))]);
        assert!((rates[1] - 1e-3).abs() < 1e-18);
        std::fs::write(&laws, "{}").expect("written");
        let failure = preset.points(1e-3, &place).expect_err("no laws");
        assert!(failure.message().contains("fit again with sae scaling fit"), "{}", failure.message());
    }
}
