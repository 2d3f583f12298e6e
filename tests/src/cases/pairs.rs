//! The active pairs of a batch, as [`kernels::Dictionary::active_pairs`] hands them out, against activations in double precision.

use std::ops::Range;

use kernels::{Device, Dictionary, Path, Training};

use super::run::{Case, Run, close, update};
use crate::reference::{self, Parameters};
use crate::tolerance::Numbers;

/// Rows that are asked for: all, some, the one on which nothing is active, none.
const ROWS: [Range<usize>; 4] = [0..70, 13..50, SILENT..SILENT + 1, 20..20];
const SILENT: usize = 3;

/// A batch of which each feature fires on some rows, and none on one of them: its row is zeros, and biases are below 0.
fn case(numbers: Numbers) -> Case {
    let mut case = Case::new(numbers, 21, 300, 70, -1.0, 14);
    case.x[SILENT] = vec![0.0; 21];
    case.apart(numbers)
}

/// The case as a rank of the feature axis has it: with the features of its shard.
fn of_rank<D: Device>(device: &D, case: &Case) -> Case {
    let shard = device.axes().place.shard(case.shape.features);
    let mut own = case.clone();
    own.shape.features = shard.len();
    let Parameters { w_enc, b_enc, w_dec, .. } = &case.p;
    (own.p.w_enc, own.p.b_enc) = (w_enc[shard.clone()].to_vec(), b_enc[shard.clone()].to_vec());
    own.p.w_dec = w_dec[shard].to_vec();
    own
}

/// What is active on each of the rows, on both paths, of a dictionary that trains and of one that does not, on every rank.
pub fn active_pairs_agree_with_the_reference<D: Device>(device: &D, numbers: Numbers) {
    let mut case = of_rank(device, &case(numbers));
    for (path, dense_bytes) in [(Path::Sparse, 0), (Path::Dense, usize::MAX), (Path::Dense, 0)] {
        case.shape.dense_bytes = dense_bytes;
        check(&mut Run::new(device, &case), &case, numbers, path);
        check(&mut Run::with(device, &case, device.dictionary(case.shape).expect("memory")), &case, numbers, path);
    }
}

fn check<D: Device, S>(run: &mut Run<'_, D, S>, case: &Case, numbers: Numbers, path: Path)
where
    S: Dictionary<Rows = D::Rows, Tally = D::Tally>,
{
    run.forward(path);
    let a = reference::encode(&case.p, &case.x);
    for rows in ROWS {
        let got = run.dictionary.active_pairs(&run.x, rows.clone()).expect("a device that works");
        let pairs = |row: usize| got.start_r[row]..got.start_r[row + 1];
        assert_eq!((got.start_r.len(), got.start_r[0]), (rows.len() + 1, 0), "{path:?}, rows {rows:?}");
        assert_eq!(got.start_r[rows.len()], got.feature_p.len(), "{path:?}, rows {rows:?}");
        assert_eq!(got.feature_p.len(), got.activation_p.len(), "{path:?}, rows {rows:?}");
        for (row, t) in rows.clone().enumerate() {
            let label = format!("{path:?}, row {t} of {rows:?}");
            let active = (0..case.shape.features).filter(|&f| a[t][f] > 0.0).collect::<Vec<_>>();
            let features: Vec<usize> = got.feature_p[pairs(row)].iter().map(|&feature| feature as usize).collect();
            assert_eq!(features, active, "{label}");
            assert_eq!(active.is_empty(), t == SILENT, "the case is what it says: {label}");
            for (f, &activation) in active.into_iter().zip(&got.activation_p[pairs(row)]) {
                let (_, bound) = reference::pre_activation(numbers, (&case.p.w_enc[f], case.p.b_enc[f]), &case.x[t]);
                let tolerance = numbers.sum(path) + bound / a[t][f].max(0.1);
                close(&format!("feature {f}, {label}"), f64::from(activation), a[t][f], tolerance);
            }
        }
    }
}

/// A step in whose middle somebody looks comes out to the same bits.
pub fn looking_at_pairs_changes_nothing<D: Device>(device: &D, numbers: Numbers) {
    let mut case = case(numbers);
    for (path, dense_bytes) in [(Path::Sparse, 0), (Path::Dense, usize::MAX), (Path::Dense, 0)] {
        case.shape.dense_bytes = dense_bytes;
        let step = |looks: bool| {
            let mut run = Run::new(device, &case);
            let look = |run: &Run<'_, D>| {
                if looks {
                    run.dictionary.active_pairs(&run.x, 5..40).expect("a device that works");
                }
            };
            run.forward(path);
            look(&run);
            run.dictionary.backward(&run.x, case.lambda);
            run.count(10..60);
            look(&run);
            run.dictionary.adam(&run.x, &update(0));
            let report = run.dictionary.report(0).expect("a device that works");
            (report, run.sums(), run.state())
        };
        assert!(step(true) == step(false), "{path:?}, {dense_bytes} bytes for the dense path");
    }
}
