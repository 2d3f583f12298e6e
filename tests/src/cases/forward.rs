//! What decode and residual leave, row by row and summed, against double precision.

use kernels::{Device, Dictionary, Path};

use super::run::{Case, Run, close};
use crate::reference;
use crate::tolerance::Numbers;

/// The error of each row, of all at once and of some: what decode has made of it shows there alone, in no other row.
pub fn every_row_has_its_own_error<D: Device>(device: &D, numbers: Numbers) {
    each_path(device, numbers, |run, case, path| {
        let (want, slack) = (reference::errors(&case.p, &case.x), reference::slack(numbers, &case.p, &case.x));
        for rows in [0..case.x.len(), 11..40] {
            let mut errors = vec![f64::NAN; rows.len()];
            run.dictionary.errors(rows.clone(), &mut errors).expect("a device that works");
            for (t, error) in rows.zip(errors) {
                let tolerance = numbers.sum(path) + slack.squared_error / want[t].max(0.1);
                close(&format!("row {t}, {path:?}"), error, want[t], tolerance);
            }
        }
    });
}

/// The sums of the report without a backward pass, which have no gradient among them.
pub fn a_report_has_the_sums_of_its_batch<D: Device>(device: &D, numbers: Numbers) {
    each_path(device, numbers, |run, case, path| {
        let report = run.dictionary.report(0).expect("a device that works");
        let (want, slack) = (reference::report(&case.p, &case.x), reference::slack(numbers, &case.p, &case.x));
        let found = (report.ok, report.rows, report.active, report.gradient_norm);
        assert_eq!(found, (true, case.x.len(), want.active, 0.0), "{path:?}");
        let sum = |slack: f64, want: f64| numbers.sum(path) + slack / want.max(0.1);
        let squared_error = sum(slack.squared_error, want.squared_error);
        close(&format!("squared error, {path:?}"), report.squared_error, want.squared_error, squared_error);
        close(&format!("l1, {path:?}"), report.l1, want.l1, sum(slack.l1, want.l1));
    });
}

fn each_path<D: Device>(device: &D, numbers: Numbers, check: impl Fn(&mut Run<'_, D>, &Case, Path)) {
    let mut case = Case::new(numbers, 24, 160, 70, -1.0, 15).apart(numbers);
    for (path, dense_bytes) in [(Path::Sparse, 0), (Path::Dense, usize::MAX), (Path::Dense, 0)] {
        case.shape.dense_bytes = dense_bytes;
        let mut run = Run::new(device, &case);
        run.forward(path);
        check(&mut run, &case, path);
    }
}
