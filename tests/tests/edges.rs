//! Sizes at which a loop makes its second pass, and numbers at which a term shows, on processors with each of their screens and on ranks
//! that share a batch. tests/cuda/boundaries.rs has the same on a GPU.

use kernels::cpu::{Cpu, Isa, Options, ScreenDtype};
use kernels::mesh::Mesh;
use kernels::{Dictionary, Path, Report};
use tests::cases::{Case, Numbers, Run, boundaries, pairs, terms};
use tests::mesh::on_mesh;
use tests::need;

/// The processor with every screen that it has, and with portable instructions.
fn processors() -> Vec<Cpu> {
    let (screens, absent): (Vec<ScreenDtype>, Vec<ScreenDtype>) =
        [ScreenDtype::Int8, ScreenDtype::Bf16, ScreenDtype::F32].into_iter().partition(|screen| screen.available());
    if !absent.is_empty() {
        need::optional("instructions for all screens");
    }
    let mut options: Vec<Options> =
        screens.into_iter().map(|screen| Options { threads: Some(2), screen: Some(screen), isa: None }).collect();
    options.push(Options { threads: Some(1), screen: Some(ScreenDtype::F32), isa: Some(Isa::Portable) });
    options.into_iter().map(|options| Cpu::with(options).expect("threads")).collect()
}

#[test]
fn boundaries_and_terms_hold_on_the_processor() {
    for device in processors() {
        for (name, check) in boundaries::all().into_iter().chain(terms::all()) {
            println!("{name}");
            check(&device, Numbers::F32);
        }
    }
    // Three and more blocks of features that scan; a processor has no constant there.
    boundaries::scans(&Cpu::new(Some(2)).expect("threads"), Numbers::F32);
}

/// An owner's features go to it 1,024 at a time: fewer, as many, and more.
#[test]
fn rows_between_ranks_come_in_as_many_rounds_as_it_takes() {
    for features in [2 * 1024 - 128, 2 * 1024, 2 * 1024 + 1, 2 * 1024 + 256, 4 * 1024 + 130] {
        let case = Case::new(Numbers::F32, 5, features, 6, -0.3, 41);
        on_mesh(Mesh { data: 2, feature: 1 }, |device| boundaries::rounds_between_ranks(device, &case));
    }
}

/// Each rank hands out the pairs of its own features, as it counts them.
#[test]
fn ranks_hand_out_pairs_of_their_own_features() {
    for mesh in [Mesh { data: 1, feature: 2 }, Mesh { data: 2, feature: 1 }] {
        on_mesh(mesh, |device| pairs::active_pairs_agree_with_the_reference(device, Numbers::F32));
    }
}

/// Rows whose rounding error is parallel to the other row, so that the bound on it is what it comes to: a screen that takes off a tenth loses
/// the pair.
#[test]
fn a_screen_keeps_pairs_at_the_edge_of_its_margin() {
    let sign = |d: usize| if d.is_multiple_of(2) { 1.0 } else { -1.0 };
    // Of 8 bits: 127 sets the scale to 1, and all others err by a quarter. Of bf16: errors of 2⁻¹⁰ beside 1.
    let int8: Vec<f64> = (0..65).map(|d| if d == 64 { 127.0 } else { 1.0 + 0.25 * sign(d) }).collect();
    let across: Vec<f64> = (0..65).map(|d| if d == 64 { 0.0 } else { 127.0 * sign(d) }).collect();
    let bf16: Vec<f64> = (0..64).map(|d| 1.0 + sign(d) * 2f64.powi(-10)).collect();
    let signs: Vec<f64> = (0..64).map(sign).collect();
    for device in processors() {
        for (rounded, exact) in [(&int8, &across), (&bf16, &signs)] {
            for (x, w) in [(rounded, exact), (exact, rounded)] {
                let product: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                for (over, active) in [(2f64.powi(-12), 1), (0.0, 0), (-(2f64.powi(-12)), 0)] {
                    let mut case = Case::new(Numbers::F32, x.len(), 1, 1, 0.0, 42);
                    (case.x[0], case.p.w_enc[0]) = (x.clone(), w.clone());
                    case.p.b_enc[0] = -product * (1.0 - over);
                    let mut run = Run::new(&device, &case);
                    run.forward(Path::Sparse);
                    let report = run.dictionary.report(0).expect("memory");
                    assert_eq!(
                        report.active,
                        active,
                        "{} over by {over} of {product}",
                        kernels::Device::describe(&device)
                    );
                }
            }
        }
    }
}

/// Biases that take back what a row of the batch gives: sums of which rounding decides are decided alike by every screen.
#[test]
fn screens_agree_where_rounding_decides() {
    for (width, seed) in [(7, 1), (64, 2), (193, 3), (1000, 4)] {
        let mut case = Case::new(Numbers::F32, width, 300, 70, 0.0, seed);
        for f in 0..300 {
            let sum: f64 = case.p.w_enc[f].iter().zip(&case.x[f % 70]).map(|(w, x)| w * x).sum();
            case.p.b_enc[f] = f64::from(-sum as f32);
        }
        let of = |device: &Cpu| {
            let mut run = Run::new(device, &case);
            let report: Report = run.step(Path::Sparse, case.lambda, &tests::cases::update(0));
            (report, run.state())
        };
        let states: Vec<_> = processors().iter().map(of).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "width {width}");
    }
}

/// Sums of 8-bit products stay below 2³¹ up to a width of 65,536; wider rows take another screen.
#[test]
fn rows_wider_than_8_bit_sums_hold_are_screened_otherwise() {
    for width in [65_535, 65_536, 65_537, 140_000] {
        for device in processors() {
            let mut case = Case::new(Numbers::F32, 1, 2, 2, 0.0, 43);
            case.shape.width = width;
            (case.p.w_enc, case.p.w_dec) = (vec![vec![1.0; width]; 2], vec![vec![0.0; width]; 2]);
            (case.p.b_dec, case.x) = (vec![0.0; width], vec![vec![1.0; width], vec![-1.0; width]]);
            case.p.b_enc = vec![-(width as f64) + 1.0, width as f64 + 1.0];
            let mut run = Run::new(&device, &case);
            run.forward(Path::Sparse);
            let report = run.dictionary.report(0).expect("memory");
            assert_eq!(report.active, 3, "width {width} on {}", kernels::Device::describe(&device));
        }
    }
}
