//! Synthetic data: the same bytes whatever the threads, frequencies as promised, disjoint sets from the same directions.
#![allow(clippy::unwrap_used)]

mod common;

use common::{memory, open};
use loader::synth::{Spec, write};
use loader::{Error, RowFilter, SkipList, Store, sample};
use safetensors::SafeTensors;

fn spec() -> Spec {
    Spec {
        features: 200,
        width: 32,
        rows: 20_000,
        shards: 3,
        active: 6.0,
        groups: 5,
        parents: 0.2,
        norm_tail: 0.3,
        seed: 5,
        ..Spec::default()
    }
}

fn make(spec: &Spec, threads: usize) -> (String, Vec<u8>) {
    let url = memory();
    let store = Store::open(&url).unwrap();
    let mut told = 0;
    write(spec, &store, threads, &mut |rows| told = rows).unwrap();
    assert_eq!(told, spec.rows);
    (url, store.get("truth.safetensors").unwrap().to_vec())
}

fn numbers<const N: usize, T>(truth: &SafeTensors<'_>, name: &str, from: fn([u8; N]) -> T) -> Vec<T> {
    truth.tensor(name).unwrap().data().chunks_exact(N).map(|b| from(b.try_into().unwrap())).collect()
}

#[test]
fn threads_change_nothing_and_sets_are_disjoint() {
    let ((one, truth_one), (three, truth_three)) = (make(&spec(), 1), make(&spec(), 3));
    assert!(truth_one == truth_three);
    assert_eq!(open(&one).identity(), open(&three).identity(), "the identity holds the checksums of all rows");
    let (eval, truth_eval) = make(&Spec { set: 1, rows: 1000, ..spec() }, 2);
    let directions = |t: &[u8]| SafeTensors::deserialize(t).unwrap().tensor("directions").unwrap().data().to_vec();
    assert!(directions(&truth_one) == directions(&truth_eval));
    let rows = |url: &str, n| {
        sample(&open(url), n, 0, &SkipList::default(), &RowFilter::default())
            .unwrap()
            .rows
            .chunks(32)
            .map(|r| r[0].to_bits())
            .collect::<Vec<_>>()
    };
    let train: std::collections::HashSet<u32> = rows(&one, 20_000).into_iter().collect();
    let shared = rows(&eval, 1000).iter().filter(|x| train.contains(x)).count();
    assert!(shared < 990, "first numbers may coincide in f16, rows do not: {shared}");
    assert!(open(&one).prepared());
    assert_eq!((open(&one).shards().len(), open(&one).rows()), (3, 20_000));
}

#[test]
fn directions_fire_as_often_as_promised() {
    let (_, truth) = make(&spec(), 2);
    let truth = SafeTensors::deserialize(&truth).unwrap();
    let frequencies = numbers(&truth, "frequencies", f64::from_le_bytes);
    let occurrences = numbers(&truth, "occurrences", u64::from_le_bytes);
    let parents = numbers(&truth, "parents", i64::from_le_bytes);
    let rows = 20_000.0;
    for (i, (f, &n)) in frequencies.iter().zip(&occurrences).enumerate() {
        let expected = f * rows;
        assert!((n as f64 - expected).abs() < 5.0 * expected.sqrt() + 5.0, "direction {i}: {n} of {expected}");
    }
    // A parent fires exactly with its children.
    for p in 0..*parents.iter().max().unwrap() {
        let children: u64 = (0..200).filter(|&i| parents[i] == p).map(|i| occurrences[i]).sum();
        assert_eq!(children, occurrences[p as usize]);
    }
    let mean: f64 = occurrences.iter().sum::<u64>() as f64 / rows;
    assert!((mean - 6.0).abs() < 1.0, "{mean} active directions a row");
}

#[test]
fn impossible_specs_are_refused() {
    for bad in [Spec { active: 0.0, ..spec() }, Spec { groups: 26, ..spec() }, Spec { parents: 1.5, ..spec() }] {
        let error = bad.validate().unwrap_err();
        assert!(matches!(error, Error::Arguments(_)) && error.to_string().starts_with("synth: "), "{error}");
    }
}
