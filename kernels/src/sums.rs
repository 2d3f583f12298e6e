//! Sums over counted rows, of one rank and over all of them.

use crate::Error;
use crate::mesh::Axes;

/// Sums over counted rows from which every reported metric follows. Adding two gives the sums of both.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    /// Counted rows.
    pub rows: u64,
    /// `Σ ‖x − x̂‖²`.
    pub squared_error: f64,
    /// `Σ ‖x‖²`.
    pub squared_norm: f64,
    /// `Σ x`, `[D]`.
    pub x_d: Vec<f64>,
    /// `Σ Σ_f a_f ‖W_dec[f]‖`.
    pub l1: f64,
    /// `Σ #{f : a_f > 0}`.
    pub active: u64,
    /// Rows on which each feature fired, `[F]`, or those of them that a rank owns.
    pub fired_f: Vec<u64>,
}

impl Sums {
    /// Nothing counted yet.
    pub fn new(width: usize, features: usize) -> Self {
        Sums {
            rows: 0,
            squared_error: 0.0,
            squared_norm: 0.0,
            x_d: vec![0.0; width],
            l1: 0.0,
            active: 0,
            fired_f: vec![0; features],
        }
    }

    /// The sums over the rows of all ranks, each row counted once; firings are those of the features that this rank owns.
    /// `self` is what this rank has counted, with the firings of its whole shard.
    ///
    /// # Errors
    /// [`Error::Peer`].
    pub(crate) fn over(mut self, axes: &Axes) -> Result<Self, Error> {
        if axes.all.size() == 1 {
            return Ok(self);
        }
        // What belongs to rows alone is the same on all ranks that see them; what belongs to pairs differs everywhere.
        let mut of_rows = [self.rows as f64, self.squared_error, self.squared_norm];
        let mut of_pairs = [self.l1, self.active as f64];
        axes.data.sum_f64(&mut of_rows)?;
        axes.data.sum_f64(&mut self.x_d)?;
        axes.all.sum_f64(&mut of_pairs)?;
        let firings = |member| bytemuck::cast_slice(&self.fired_f[axes.owned_by(member, self.fired_f.len())]).to_vec();
        let messages = axes.data.exchange((0..axes.data.size()).map(firings).collect())?;
        let mut fired_f = vec![0; axes.owned(self.fired_f.len()).len()];
        for message in &messages {
            let counts: Vec<u64> = bytemuck::pod_collect_to_vec(message);
            fired_f.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        let ([rows, squared_error, squared_norm], [l1, active]) = (of_rows, of_pairs);
        let (rows, active) = (rows as u64, active as u64);
        Ok(Sums { rows, squared_error, squared_norm, l1, active, fired_f, ..self })
    }

    /// What the rank among `axes` puts into the tally of its shard of `features` so that [`Sums::over`] gives `self` again.
    pub(crate) fn part(&self, axes: &Axes, features: usize) -> Sums {
        let mut fired_f = vec![0; features];
        fired_f[axes.owned(features)].copy_from_slice(&self.fired_f);
        let part = match (axes.place.data(), axes.place.feature()) {
            (0, 0) => self.clone(),
            (0, _) => Sums { l1: 0.0, active: 0, ..self.clone() },
            _ => Sums::new(self.x_d.len(), 0),
        };
        Sums { fired_f, ..part }
    }

    /// Adds the sums over other rows of the same data and dictionary.
    ///
    /// # Panics
    /// When widths or feature counts differ.
    pub fn add(&mut self, other: &Sums) {
        assert_eq!((self.x_d.len(), self.fired_f.len()), (other.x_d.len(), other.fired_f.len()), "sums of one shape");
        self.rows += other.rows;
        self.squared_error += other.squared_error;
        self.squared_norm += other.squared_norm;
        self.l1 += other.l1;
        self.active += other.active;
        self.x_d.iter_mut().zip(&other.x_d).for_each(|(a, b)| *a += b);
        self.fired_f.iter_mut().zip(&other.fired_f).for_each(|(a, b)| *a += b);
    }
}
