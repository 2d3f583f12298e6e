//! Steps enqueued behind one whose report is not read yet, on a device that runs ahead: [`Device::AHEAD`].

use kernels::{Device, Dictionary, Path, Report, RowDtype, Sums};
use trainer::step::{StepInput, step};

use crate::cases::{Case, Check, Numbers, PATHS, Run, update};

/// All cases, by name: for devices that run ahead.
pub fn all<D: Device>() -> Vec<(&'static str, Check<D>)> {
    vec![
        ("reports read late are the same", reports_read_late_are_the_same),
        ("steps behind one that is not finite are held", steps_behind_one_that_is_not_finite_are_held),
        ("steps behind one without room are held", steps_behind_one_without_room_are_held),
    ]
}

/// A dictionary with as many batches as may be in flight.
struct Ahead<'a, D: Device> {
    run: Run<'a, D>,
    batches: Vec<(D::Staging, D::Rows)>,
    lambda: f32,
    rows: usize,
}

impl<'a, D: Device> Ahead<'a, D> {
    fn new(device: &'a D, case: &Case) -> Self {
        let batch = || {
            let staging = device.staging(4 * case.shape.batch * case.shape.width).expect("memory");
            (staging, device.rows(case.shape.batch, case.shape.width).expect("memory"))
        };
        let batches = (0..=D::AHEAD).map(|_| batch()).collect();
        Ahead { run: Run::new(device, case), batches, lambda: case.lambda, rows: case.shape.batch }
    }

    /// Enqueues step `number` on the rows that [`Ahead::enqueue`] has left for it.
    fn again(&mut self, number: u64, path: Path) {
        let (_, x) = &self.batches[number as usize % (D::AHEAD + 1)];
        let input = StepInput { path, lambda: self.lambda, update: update(number), counted: 0..self.rows };
        step(&mut self.run.dictionary, x, &mut self.run.tally, &input);
    }

    fn enqueue(&mut self, number: u64, rows: &[Vec<f64>], path: Path) {
        let (staging, x) = &mut self.batches[number as usize % (D::AHEAD + 1)];
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|&v| (v as f32).to_le_bytes()).collect();
        staging.as_mut().copy_from_slice(&bytes);
        self.run.device.normalize(staging, RowDtype::F32, rows.len(), rows.len(), 1.0, x);
        self.again(number, path);
    }

    fn report(&mut self, back: usize) -> Report {
        self.run.dictionary.report(back).expect("a device that works")
    }

    /// Everything that a step may change.
    fn state(&mut self) -> (Vec<u32>, Vec<u64>, Sums) {
        let sums = self.run.device.take_sums(&mut self.run.tally).expect("a device that works");
        self.run.device.put_sums(&mut self.run.tally, &sums);
        let (values, clocks) = self.run.state();
        (values, clocks, sums)
    }
}

/// The batches of steps 0 to 5.
fn batches(case: &Case, numbers: Numbers) -> Vec<Vec<Vec<f64>>> {
    let of = |seed| Case::new(numbers, case.shape.width, 1, case.shape.batch, 0.0, seed).x;
    (20..26).map(of).collect()
}

fn reports_read_late_are_the_same<D: Device>(device: &D, numbers: Numbers) {
    let case = Case::new(numbers, 9, 20, 6, -0.5, 2);
    let rows = batches(&case, numbers);
    for path in PATHS {
        let mut waits = Ahead::new(device, &case);
        let mut expected = Vec::new();
        for (number, rows) in rows.iter().enumerate() {
            waits.enqueue(number as u64, rows, path);
            expected.push(waits.report(0));
        }
        let mut late = Ahead::new(device, &case);
        let mut reports = Vec::new();
        for (number, rows) in rows.iter().enumerate() {
            late.enqueue(number as u64, rows, path);
            if number >= D::AHEAD {
                reports.push(late.report(D::AHEAD));
            }
        }
        reports.extend((0..D::AHEAD).rev().map(|back| late.report(back)));
        assert_eq!(reports, expected, "{path:?}");
        assert!(late.state() == waits.state(), "{path:?}");
    }
}

fn steps_behind_one_that_is_not_finite_are_held<D: Device>(device: &D, numbers: Numbers) {
    let case = Case::new(numbers, 9, 20, 6, -0.5, 2);
    let rows = batches(&case, numbers);
    let mut nan = rows[1].clone();
    (nan[4][8], nan[5][0]) = (f64::NAN, f64::INFINITY);
    let huge = vec![vec![1e30; 9]; 6];
    for (bad, named) in [(nan, vec![4, 5]), (huge, vec![])] {
        for path in PATHS {
            let mut late = Ahead::new(device, &case);
            late.enqueue(0, &rows[0], path);
            assert!(late.report(0).ok);
            let before = late.state();
            late.enqueue(1, &bad, path);
            late.enqueue(2, &rows[2], path);
            let refused = late.report(1);
            assert!(!refused.ok && !refused.held && refused.non_finite_rows == named, "{path:?} {refused:?}");
            let held = late.report(0);
            assert!(!held.ok && held.held && !held.overflow, "{path:?} {held:?}");
            // Reading reports changes nothing: whatever comes is held too.
            late.enqueue(3, &rows[3], path);
            assert!(late.report(0).held && late.state() == before, "{path:?}");

            late.run.dictionary.release();
            for number in 1..4 {
                late.enqueue(number, &rows[number as usize], path);
            }
            assert!(late.report(1).ok && late.report(0).ok, "{path:?}");
            let mut straight = Ahead::new(device, &case);
            for number in 0..4 {
                straight.enqueue(number, &rows[number as usize], path);
            }
            assert!(late.state() == straight.state(), "{path:?}");
        }
    }
}

fn steps_behind_one_without_room_are_held<D: Device>(device: &D, numbers: Numbers) {
    // Every feature fires: more than the 1024 a row for which a GPU has room.
    let case = Case::new(numbers, 4, 1100, 2, 100.0, 1);
    let rows = batches(&case, numbers);
    let mut late = Ahead::new(device, &case);
    late.enqueue(0, &rows[0], Path::Dense);
    late.enqueue(1, &rows[1], Path::Sparse);
    assert!(late.report(1).ok);
    late.enqueue(2, &rows[2], Path::Dense);
    let refused = late.report(1);
    assert!(refused.overflow && !refused.ok && !refused.held, "{refused:?}");
    assert!(late.report(0).held);
    late.run.dictionary.release();
    late.again(1, Path::Dense);
    late.again(2, Path::Dense);
    let reports = [late.report(1), late.report(0)];
    let mut straight = Ahead::new(device, &case);
    let expected = [0, 1, 2].map(|number| {
        straight.enqueue(number, &rows[number as usize], Path::Dense);
        straight.report(0)
    });
    assert_eq!(reports, expected[1..], "made again");
    assert_eq!(reports[0].active, 2 * 1100);
    assert!(late.state() == straight.state());
}
