//! Shapes that end one before, at, and one behind every constant of the kernels, so that each loop makes its second pass.
//!
//! | constant | where | case |
//! |---|---|---|
//! | lanes 16, groups of 6, tiles of 96 and 128 features | cpu: `simd`, `screen`, `encode`, `dense` | features of every size |
//! | panels, tasks and blocks of 64 tokens, GEMMs of 512 | cpu: `screen`, `normalize`, `residual`, `plain` | batches of every size |
//! | blocks of up to 256 tokens | cpu: `dense`, where a batch has more than 1,984 | runs of every length |
//! | slices of 64 columns, 4 blocks of columns at a time | cpu: `decode`, `backward` | widths of every size |
//! | rounds of 1,024 features of an owner | cpu: `exchange` | [`rounds_between_ranks`] |
//! | 64 rows that a report names | cpu: `normalize`; cuda: `status` | rows that are not finite are named |
//! | tiles 64 × 64 × 16 and 128 × 128 × 64, three stages | tile.cuh | all three |
//! | 128 threads of 4 columns, 32 columns of sums, 256 tokens | columns.cuh, backward.cu, residual.cu, count.cu | widths, batches |
//! | 1,024 threads over features | backward.cu, exchange.cu | features of every size |
//! | runs of 4, 32, 128, 256, 1,024 and 2,048 pairs | backward.cu, transpose.cu, gradient.cuh | runs of every length |
//! | lists of 128 | decode.cu | lists of every length |
//! | 1,087 and 12,287 hits of a tile in shared memory | encode.cu | tiles of every number of hits |
//! | scans of 2,048 features, and of 256 times as many | transpose.cu | features of every size; [`scans`] |
//! | 256 words of a bitmap: 8,192 tokens | transpose.cu | [`of_gpus`] |
//! | 4,096 pairs of a list, 1,024 a token on average | encode.rs, transpose.rs | [`of_gpus`] |
//! | blocks of 128 columns in 8 bits | parameter.cuh | widths of every size; `rounding` |

use super::*;

/// All cases, by name.
pub fn all<D: Device>() -> Vec<(&'static str, Check<D>)> {
    vec![
        ("batches of every size", batches_of_every_size),
        ("widths of every size", widths_of_every_size),
        ("features of every size", features_of_every_size),
        ("runs of every length", runs_of_every_length),
        ("lists of every length", lists_of_every_length),
        ("tiles of every number of hits", tiles_of_every_number_of_hits),
        ("a sum of exactly 0 is silent", a_sum_of_exactly_zero_is_silent),
        ("rows that are not finite are named", rows_that_are_not_finite_are_named),
    ]
}

/// What only a GPU has: room that may be too small, and blocks of threads that share a batch.
pub fn of_gpus<D: Device>() -> Vec<(&'static str, Check<D>)> {
    vec![
        ("lists and runs up to their room", lists_and_runs_up_to_their_room),
        ("a bitmap of more than 256 words", a_bitmap_of_more_than_256_words),
        ("scans carry over", scans),
    ]
}

/// One before, at, and one behind each.
fn around(constants: &[usize]) -> Vec<usize> {
    let mut sizes: Vec<usize> = constants.iter().flat_map(|&constant| constant - 1..=constant + 1).collect();
    sizes.retain(|&size| size > 0);
    sizes.dedup();
    sizes
}

/// A step on both paths, with the activations of the dense one kept and made again.
fn check_paths<D: Device>(device: &D, numbers: Numbers, case: &Case) {
    check_step(device, numbers, case, Path::Sparse);
    for dense_bytes in [usize::MAX, 0] {
        let mut case = case.clone();
        case.shape.dense_bytes = dense_bytes;
        check_step(device, numbers, &case, Path::Dense);
    }
}

fn batches_of_every_size<D: Device>(device: &D, numbers: Numbers) {
    for batch in around(&[1, 4, 8, 16, 32, 64, 128, 256, 512]) {
        check_paths(device, numbers, &Case::new(numbers, 9, 5, batch, -0.3, 21));
    }
}

fn widths_of_every_size<D: Device>(device: &D, numbers: Numbers) {
    for width in around(&[1, 4, 8, 16, 32, 64, 128, 192, 256, 512, 1024]) {
        check_paths(device, numbers, &Case::new(numbers, width, 5, 3, -0.3, 22));
    }
}

fn features_of_every_size<D: Device>(device: &D, numbers: Numbers) {
    for features in around(&[1, 6, 8, 16, 32, 64, 96, 128, 192, 256]) {
        check_paths(device, numbers, &Case::new(numbers, 5, features, 3, -0.3, 23));
    }
    // Tiles of the dense path have crossed theirs by now.
    for features in around(&[512, 1024, 2048]) {
        check_step(device, numbers, &Case::new(numbers, 5, features, 3, -0.3, 23), Path::Sparse);
    }
}

/// Rows of a batch on which feature f fires on the first `runs[f]`: token t has t in two columns, and a feature takes it from its run.
fn with_runs(numbers: Numbers, batch: usize, runs: &[usize]) -> Case {
    let mut case = Case::new(numbers, 8, runs.len(), batch, 0.0, 24);
    for (t, x) in case.x.iter_mut().enumerate() {
        (x[0], x[1]) = ((t / 64) as f64 / 16.0, (t % 64) as f64 / 1024.0);
    }
    for (f, &run) in runs.iter().enumerate() {
        case.p.w_enc[f].fill(0.0);
        (case.p.w_enc[f][0], case.p.w_enc[f][1]) = (-1.0, -1.0);
        case.p.b_enc[f] = (run as f64 - 0.5) / 1024.0;
    }
    case
}

/// As [`check_step`], and each row of the gradient by itself: in a sum over all rows a lost one may drown.
fn check_rows<D: Device>(device: &D, numbers: Numbers, case: &Case, path: Path) {
    check_step(device, numbers, case, path);
    let mut run = Run::new(device, case);
    run.step(path, case.lambda, &AdamUpdate { clip: f32::INFINITY, ..update(0) });
    let gradient = reference::gradient(&case.p, &case.x, f64::from(case.lambda));
    // A row's own factor may be a small difference of products: in bf16 that shows whether it is there, and no more.
    let near = if numbers == Numbers::F32 { 3.0 * numbers.moment() } else { 0.3 };
    for (tensor, rows) in [(Tensor::EncoderWeight, &gradient.w_enc), (Tensor::DecoderWeight, &gradient.w_dec)] {
        let moments = read_moment(&run.dictionary, tensor, Moment::First);
        for (f, (row, moments)) in rows.iter().zip(moments.chunks_exact(case.shape.width)).enumerate() {
            let tenth: Vec<f64> = row.iter().map(|g| g * (1.0 - 0.9)).collect();
            let off = distance(moments, &tenth);
            let silent = row.iter().all(|&g| g == 0.0) && moments.iter().all(|&m| m == 0.0);
            assert!(silent || off < near, "{tensor:?} of feature {f} on {path:?}: off by {off:.1e}");
        }
    }
    let bias = read_moment(&run.dictionary, Tensor::EncoderBias, Moment::First);
    let size = gradient.b_enc.iter().fold(0.0_f64, |size, g| size.max(g.abs()));
    for (f, (&got, want)) in bias.iter().zip(&gradient.b_enc).enumerate() {
        let off = (f64::from(got) - want * (1.0 - 0.9)).abs();
        assert!(off <= 3.0 * numbers.moment() * 0.1 * size, "∂b_enc[{f}] on {path:?}: {got} for {want}");
    }
}

fn runs_of_every_length<D: Device>(device: &D, numbers: Numbers) {
    let mut runs = around(&[4, 32, 64, 128, 256, 512, 1024, 2048]);
    runs.extend([0, 1]);
    let case = with_runs(numbers, 2049, &runs);
    let counts: Vec<u64> = runs.iter().map(|&run| run as u64).collect();
    assert_eq!(reference::report(&case.p, &case.x).fired, counts, "the case is what it says");
    PATHS.into_iter().for_each(|path| check_rows(device, numbers, &case, path));
    // As many as there are tokens, and all but one of them, where a chunk of 1,024 ends with the batch.
    for batch in [1023, 1024, 1025] {
        check_rows(device, numbers, &with_runs(numbers, batch, &[batch, batch - 1, 3]), Path::Sparse);
    }
}

/// A batch of `tokens` rows, each a column of its own, of which feature f fires on those that `fires(t, f)` names.
fn with_firings(numbers: Numbers, (tokens, features): (usize, usize), fires: impl Fn(usize, usize) -> bool) -> Case {
    let mut case = Case::new(numbers, tokens, features, tokens, 0.0, 25);
    for (t, x) in case.x.iter_mut().enumerate() {
        x.fill(0.0);
        x[t] = 1.0;
    }
    for f in 0..features {
        case.p.w_enc[f] = (0..tokens).map(|t| if fires(t, f) { 1.0 } else { -1.0 }).collect();
        case.p.b_enc[f] = -0.5;
    }
    case
}

fn lists_of_every_length<D: Device>(device: &D, numbers: Numbers) {
    let lists = around(&[1, 32, 64, 128, 256]);
    let case = with_firings(numbers, (lists.len() + 1, 260), |t, f| lists.get(t).is_some_and(|&list| f < list));
    check_paths(device, numbers, &case);
    PATHS.into_iter().for_each(|path| check_rows(device, numbers, &case, path));
}

/// Hits of one tile go to its block's shared memory while there is room, and in parts where there is not.
fn tiles_of_every_number_of_hits<D: Device>(device: &D, numbers: Numbers) {
    let (side, room) = if numbers == Numbers::F32 { (64, 1087) } else { (128, 12_287) };
    for hits in [0, 1, room, room + 1, side * side] {
        let case = with_firings(numbers, (side, side), |t, f| t * side + f < hits);
        assert_eq!(reference::report(&case.p, &case.x).active, hits as u64, "the case is what it says");
        check_step(device, numbers, &case, Path::Sparse);
    }
}

/// ReLU is 0 at 0: a row of zeros without a bias, and a sum that cancels, neither fire nor have a gradient; the smallest sum above does.
fn a_sum_of_exactly_zero_is_silent<D: Device>(device: &D, numbers: Numbers) {
    for (features, batch) in [(6, 3), (130, 70)] {
        let mut case = Case::new(numbers, 9, features, batch, -0.4, 26);
        (case.p.w_enc[0], case.p.b_enc[0]) = (vec![0.0; 9], 0.0);
        (case.p.w_enc[1], case.p.b_enc[1]) = (vec![-0.0; 9], -0.0);
        // x[0] = x[1] = 1 on every token.
        case.x.iter_mut().for_each(|x| (x[0], x[1]) = (1.0, 1.0));
        case.p.w_enc[2] = [vec![0.5, -0.5], vec![0.0; 7]].concat();
        case.p.b_enc[2] = 0.0;
        case.p.w_enc[3] = [vec![0.25, 0.5], vec![0.0; 7]].concat();
        case.p.b_enc[3] = -0.75;
        (case.p.w_enc[4], case.p.b_enc[4]) = (vec![0.0; 9], 2f64.powi(-20));
        case.p.w_enc[5] = [vec![0.5, -0.5], vec![0.0; 7]].concat();
        case.p.b_enc[5] = -2f64.powi(-20);
        let fired = reference::report(&case.p, &case.x).fired;
        assert_eq!(fired[..6], [0, 0, 0, 0, batch as u64, 0], "the case is what it says");
        check_paths(device, numbers, &case);
        // A row of zeros as input, without any bias.
        case.x[1] = vec![0.0; 9];
        case.p.b_enc.fill(0.0);
        check_paths(device, numbers, &case);
    }
}

/// In every dtype, wherever it stands in its row, and when only scaling makes it so; the first 64 of many by name.
fn rows_that_are_not_finite_are_named<D: Device>(device: &D, _: Numbers) {
    const WIDTH: usize = 131;
    let shape = Shape { width: WIDTH, features: 3, batch: 70, dense_bytes: 0 };
    let named = |dtype: RowDtype, bytes: &[u8], scale: f32, path: Path| {
        let rows = bytes.len() / WIDTH / dtype.size();
        let mut staging = device.staging(bytes.len()).expect("memory");
        let mut x = device.rows(70, WIDTH).expect("memory");
        staging.as_mut().copy_from_slice(bytes);
        device.normalize(&staging, dtype, rows, rows, scale, &mut x);
        let mut dictionary = device.dictionary(shape).expect("memory");
        dictionary.encode(&x, path);
        dictionary.decode(&x);
        dictionary.residual(&x);
        let report = dictionary.report(0).expect("a device that works");
        (report.ok, report.non_finite_rows)
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (row, column) in [(0, 0), (2, WIDTH - 1), (1, 128)] {
            let mut values = vec![1.0; 3 * WIDTH];
            values[row * WIDTH + column] = bad;
            let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let f16s: Vec<u8> = values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
            let bf16s: Vec<u8> = values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
            for (dtype, bytes) in [(RowDtype::F32, f32s), (RowDtype::F16, f16s), (RowDtype::Bf16, bf16s)] {
                for path in PATHS {
                    assert_eq!(named(dtype, &bytes, 0.5, path), (false, vec![row]), "{bad} as {dtype:?} on {path:?}");
                }
            }
        }
    }
    let large: Vec<u8> = (0..2 * WIDTH).flat_map(|at| if at == WIDTH { 1e30_f32 } else { 1.0 }.to_le_bytes()).collect();
    assert_eq!(named(RowDtype::F32, &large, 1e10, Path::Sparse), (false, vec![1]), "infinite when it is scaled");
    for bad in [63, 64, 65] {
        let value = |t: usize| if (1..=bad).contains(&t) { f32::NAN } else { 1.0 };
        let bytes: Vec<u8> = (0..70).flat_map(|t| vec![value(t); WIDTH]).flat_map(f32::to_le_bytes).collect();
        let (ok, named) = named(RowDtype::F32, &bytes, 1.0, Path::Sparse);
        assert!(!ok && named == (1..=bad.min(64)).collect::<Vec<_>>(), "{bad} rows: {named:?}");
    }
}

/// A list holds 4,096 pairs, and all runs of a batch 1,024 a token: full is not overfull.
fn lists_and_runs_up_to_their_room<D: Device>(device: &D, numbers: Numbers) {
    const TOKENS: usize = 8;
    let of = |lists: [usize; TOKENS]| {
        with_firings(numbers, (TOKENS, 4100), |t, f| f < lists[t]).with_adam(AdamMode::Touched)
    };
    for full in [[0, 4096, 0, 1, 0, 0, 0, 0], [1024, 1024, 1024, 1024, 1024, 1024, 2000, 48]] {
        check_step(device, numbers, &of(full), Path::Sparse);
    }
    for overfull in [[0, 0, 4097, 0, 0, 0, 0, 0], [1024, 1024, 1024, 1024, 1024, 1024, 2000, 49]] {
        let case = of(overfull);
        let report = Run::new(device, &case).step(Path::Sparse, case.lambda, &update(0));
        assert!(report.overflow && !report.ok, "{overfull:?}: {report:?}");
    }
}

/// One bit a token, and 256 words at a time: a batch of 8,192, and one more.
fn a_bitmap_of_more_than_256_words<D: Device>(device: &D, numbers: Numbers) {
    let rows = with_runs(numbers, 2000, &[1]).x;
    for batch in [8192, 8193] {
        // A run of all tokens, one with gaps up to the last word, a short one.
        let mut case = with_runs(numbers, 2, &[4000, 1500, 3]);
        case.x = (0..batch).map(|t| rows[t % 2000].clone()).collect();
        case.shape.batch = batch;
        check_step(device, numbers, &case, Path::Sparse);
    }
}

/// Sums over features go through blocks of 2,048, and those of 256 blocks on to the next: features behind the 524,288th, and runs of more
/// than a warp before it. Weights of zeros are as they were made, for to write so many takes the emulator a minute.
pub fn scans<D: Device>(device: &D, _: Numbers) {
    const FEATURES: usize = 256 * 2048 + 2050;
    const TOKENS: usize = 40;
    let fires = [0, 2047, 2048, 256 * 2048 - 1, 256 * 2048, 256 * 2048 + 1, 257 * 2048, FEATURES - 1];
    let shape = Shape { width: 4, features: FEATURES, batch: TOKENS, dense_bytes: 0 };
    let mut dictionary = device.dictionary(shape).expect("memory");
    let mut bias_f = vec![-1.0; FEATURES];
    fires.iter().for_each(|&f| bias_f[f] = 1.0);
    dictionary.write(Tensor::EncoderBias, 0..FEATURES, &bias_f);
    let (x, tally) = (device.rows(TOKENS, 4).expect("memory"), device.tally(4, FEATURES).expect("memory"));
    let mut run = Run { device, dictionary, x, tally };
    run.load(&vec![vec![1.0; 4]; TOKENS]);
    // Tokens of a part are counted by the runs, those of a whole batch where they fired.
    for (counted, tokens) in [(1..34, 33), (39..40, 1), (0..TOKENS, 40)] {
        run.forward(Path::Sparse);
        run.count(counted.clone());
        let sums = run.sums();
        assert_eq!(sums.active, tokens * fires.len() as u64, "tokens {counted:?}");
        for (f, &count) in sums.fired_f.iter().enumerate() {
            assert_eq!(count, if fires.contains(&f) { tokens } else { 0 }, "feature {f} on tokens {counted:?}");
        }
    }
}

/// What each of `ranks` ranks of the data axis holds of a step on all rows of `case`: this one's own features against the reference.
pub fn rounds_between_ranks<D: Device>(device: &D, case: &Case) {
    let data = &device.axes().data;
    let rows = |rank: usize| rank * case.x.len() / data.size()..(rank + 1) * case.x.len() / data.size();
    let mut run = Run::new(device, case);
    let own = case.x[rows(data.index())].to_vec();
    let bytes: Vec<u8> = own.iter().flatten().flat_map(|&v| (v as f32).to_le_bytes()).collect();
    let mut staging = device.staging(bytes.len()).expect("memory");
    staging.as_mut().copy_from_slice(&bytes);
    device.normalize(&staging, RowDtype::F32, own.len(), case.x.len(), 1.0, &mut run.x);
    let report = run.step(Path::Sparse, case.lambda, &AdamUpdate { clip: f32::INFINITY, ..update(0) });
    let want = reference::report(&case.p, &case.x);
    assert!(report.ok && report.active == want.active, "{report:?}");
    close("squared error", report.squared_error, want.squared_error, 1e-5);
    let gradient = reference::gradient(&case.p, &case.x, f64::from(case.lambda));
    let norm = reference::norm(&gradient.values().copied().collect::<Vec<_>>());
    close("norm", report.gradient_norm, norm, 2e-5);
    let (width, features) = (case.shape.width, device.axes().owned(case.shape.features));
    let mut adam = reference::Adam::new(AdamMode::Dense, &case.p);
    let mut p = case.p.clone();
    let fired: Vec<bool> = want.fired.iter().map(|&count| count > 0).collect();
    adam.update(&mut p, &gradient, &fired, 0, LR, f64::INFINITY);
    for (tensor, tenths, values) in
        [(Tensor::EncoderWeight, &adam.first.w_enc, &p.w_enc), (Tensor::DecoderWeight, &adam.first.w_dec, &p.w_dec)]
    {
        let mut moments = vec![f32::NAN; features.len() * width];
        let of_owned = run.dictionary.read_moment(tensor, Moment::First, features.clone(), &mut moments);
        of_owned.expect("a device that works");
        let off = distance(&moments, &tenths[features.clone()].concat());
        assert!(off < 2e-5, "{tensor:?} of {features:?}: off by {off:.1e}");
        // Weights came from their owners.
        let off = distance(&read(&run.dictionary, tensor), &values.concat());
        assert!(off < 1e-4, "{tensor:?}: off by {off:.1e}");
    }
}
