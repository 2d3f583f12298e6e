//! How λ and the learning rate change over a run's steps.

use kernels::LearningRate;

/// The schedules of a run of `steps` steps, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    steps: u64,
    lr: LearningRate,
    l1: f64,
    warmup_steps: f64,
}

impl Schedule {
    /// `l1_warmup` and `lr_decay` are shares of `steps`.
    pub fn new(steps: u64, lr: f64, l1: f64, l1_warmup: f64, lr_decay: f64) -> Self {
        let s = steps as f64;
        let lr = LearningRate { base: lr, decay_from: (1.0 - lr_decay) * s, steps: s };
        Schedule { steps, lr, l1, warmup_steps: (l1_warmup * s).round().max(1.0) }
    }

    /// All steps of the run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// `λ(s) = l1 · min(1, (s+1)/w)` with `w = max(1, round(l1_warmup · S))`.
    pub fn lambda(&self, step: u64) -> f32 {
        (self.l1 * ((step + 1) as f64 / self.warmup_steps).min(1.0)) as f32
    }

    /// λ once warmed up: evaluation uses it throughout.
    pub fn final_lambda(&self) -> f64 {
        self.l1
    }

    /// `lr(s) = lr` before the decay begins, then `lr · (S − s) / (S · lr_decay)`: linear to 0 at `S`.
    pub fn lr(&self) -> LearningRate {
        self.lr
    }
}

/// Whether what is done every so many steps is due: before the first step nothing is, also in a run that was stopped there and goes on.
pub(crate) fn is_due(every: u64, step: u64) -> bool {
    every > 0 && step > 0 && step.is_multiple_of(every)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_shape() {
        let schedule = Schedule::new(1000, 3e-4, 5.0, 0.05, 0.2);
        assert_eq!(schedule.lambda(0), 0.1);
        assert_eq!(schedule.lambda(49), 5.0);
        assert_eq!(schedule.lambda(999), 5.0);
        assert_eq!(schedule.lr().at(799), 3e-4);
        assert_eq!(schedule.lr().at(800), 3e-4);
        assert_eq!(schedule.lr().at(900), 1.5e-4);
        assert!((schedule.lr().at(999) - 1.5e-6).abs() < 1e-15);
    }

    #[test]
    fn a_single_step_has_the_full_penalty_and_rate() {
        let schedule = Schedule::new(1, 1e-3, 2.0, 0.05, 0.2);
        assert_eq!((schedule.lambda(0), schedule.lr().at(0)), (2.0, 1e-3));
    }

    #[test]
    fn without_warmup_or_decay_both_are_constant() {
        let schedule = Schedule::new(10, 1e-3, 2.0, 0.0, 0.0);
        for step in 0..10 {
            assert_eq!((schedule.lambda(step), schedule.lr().at(step)), (2.0, 1e-3));
        }
    }
}
