//! Runs on one stream: each is the run that it is alone, whatever becomes of the others.

use kernels::cpu::Cpu;
use kernels::{Device, Purpose};
use loader::{Dtype, memory};
use serde_json::Value;
use tests::checkpoints;
use tests::fixture::{Fixture, json, json_lines, plain_rows, write_shards};
use tests::mesh::{tiles, train_on, train_together_on};
use tests::runs::{Told, finish, stop, trained, trained_among, trained_together};
use trainer::data::Data;
use trainer::plan::{self, DataSize};
use trainer::recipe::{Adam, BiasInit, Moments, Precision, Recipe};
use trainer::train::share_a_stream;
use trainer::{Error, Exit};

/// Rows that the order is made for: 60 steps of 256, and a short one.
const ORDER_ROWS: u64 = 15_401;

/// Recipes on one stream that differ in whatever a sweep varies. The first sees all rows, the second the fewest.
fn recipes(fixture: &Fixture, folder: &str) -> Vec<Recipe> {
    let recipe = |name: &str, change: &dyn Fn(&mut Recipe)| {
        let mut recipe = fixture.recipe(&format!("{folder}/{name}"));
        recipe.data.order_rows = Some(ORDER_ROWS);
        recipe.data.eval = vec![fixture.text("eval")];
        (recipe.eval.every, recipe.eval.rows, recipe.log.every) = (9, 500, 7);
        change(&mut recipe);
        recipe
    };
    vec![
        recipe("whole", &|_| ()),
        recipe("short", &|recipe| (recipe.train.tokens, recipe.sae.features) = (Some(20 * 256), 128)),
        recipe("lr", &|recipe| (recipe.train.tokens, recipe.train.lr) = (Some(30 * 256), 3e-3)),
        recipe("seed", &|recipe| (recipe.train.seed, recipe.train.l1) = (3, 0.5)),
        recipe("catchup", &|recipe| (recipe.train.adam, recipe.sae.features) = (Adam::Catchup, 384)),
        recipe("calibrated", &|recipe| {
            (recipe.sae.bias_init, recipe.sae.bias_init_l0) = (BiasInit::Calibrated, 8.0);
        }),
    ]
}

/// What was told that does not depend on clocks.
fn of(told: &Told) -> Vec<Value> {
    let lines = told.lines.iter().map(|line| serde_json::to_value(line).expect("JSON"));
    let all = lines.chain(told.evaluated.iter().map(|line| serde_json::to_value(line).expect("JSON")));
    all.map(without_clocks).collect()
}

fn without_clocks(mut value: Value) -> Value {
    let object = value.as_object_mut().expect("an object");
    for key in ["time", "tokens_per_s", "tokens_per_s_wall", "stall_share", "step_s", "wall_s", "stall_s", "checkpoint"]
    {
        object.remove(key);
    }
    value
}

/// The run of `recipe` is that of `alone`: weights, moments, clocks and sums of the last checkpoint, and the summary.
#[track_caller]
fn assert_same(fixture: &Fixture, recipe: &Recipe, alone: &Recipe) {
    let folder = |recipe: &Recipe| fixture.path(&recipe.run.dir);
    let (one, other) = (checkpoints::last(&folder(recipe)), checkpoints::last(&folder(alone)));
    assert_eq!(checkpoints::differing(&one, &other), [""; 0], "{}", recipe.run.dir);
    let summary = |recipe: &Recipe| without_clocks(json(&folder(recipe).join("summary.json")));
    assert_eq!(summary(recipe), summary(alone), "{}", recipe.run.dir);
}

#[test]
fn a_run_in_company_is_the_run_that_it_is_alone() {
    let fixture = Fixture::with_data();
    let (apart, company) = (recipes(&fixture, "alone"), recipes(&fixture, "company"));
    let alone: Vec<Told> = apart
        .iter()
        .map(|recipe| {
            let (result, told) = trained(recipe, false, None);
            result.unwrap_or_else(|error| panic!("{}: {error}", recipe.run.dir));
            told
        })
        .collect();
    let members: Vec<(&Recipe, bool)> = company.iter().map(|recipe| (recipe, false)).collect();
    let steps: Vec<u64> = trained_together(&members, None)
        .into_iter()
        .zip(&alone)
        .map(|((result, told), alone)| {
            assert_eq!(of(&told), of(alone));
            assert!(!told.evaluated.is_empty());
            result.expect("it trains").steps
        })
        .collect();
    assert_eq!(steps, [61, 20, 30, 61, 61, 61]);
    company.iter().zip(&apart).for_each(|(recipe, alone)| assert_same(&fixture, recipe, alone));
}

/// Stopped when one has ended, and resumed at different steps: one has come further by itself, one has not begun.
#[test]
fn a_company_that_was_stopped_goes_on_to_the_same_bits() {
    let fixture = Fixture::with_data();
    let (apart, company) = (recipes(&fixture, "alone"), recipes(&fixture, "company"));
    let picked = [0, 1, 4, 5];
    picked.iter().for_each(|&index| drop(finish(&apart[index])));
    let [whole, short, catchup, calibrated] = picked.map(|index| &company[index]);
    let stopped = trained_together(&[(whole, false), (short, false), (catchup, false)], Some(25));
    let ends: Vec<Option<u64>> = stopped
        .iter()
        .map(|(result, _)| match result {
            Err(Error::Interrupted { step, .. }) => Some(*step),
            Ok(_) => None,
            Err(error) => panic!("{error}"),
        })
        .collect();
    assert_eq!(ends, [Some(25), None, Some(25)], "the short one had ended");
    stop(catchup, true, 40);
    let results = trained_together(&[(whole, true), (catchup, true), (calibrated, false)], None);
    for (result, _) in results {
        result.expect("it goes on");
    }
    picked.iter().for_each(|&index| assert_same(&fixture, &company[index], &apart[index]));
}

/// On several ranks too, on either axis: one that diverges and one whose folder is taken stop no other.
#[test]
fn a_company_on_several_ranks_is_each_run_alone_on_them() {
    for name in ["2x1", "1x2"] {
        let (fixture, mesh) = (Fixture::with_data(), name.parse().expect("a mesh"));
        let (apart, mut company) = (recipes(&fixture, "alone"), recipes(&fixture, "company"));
        let picked = [0, 2, 4];
        for &index in &picked {
            train_on(mesh, &apart[index], false, None).into_iter().for_each(|rank| drop(rank.expect("it trains")));
        }
        let taken = apart[0].clone();
        company[3].train.lr = 1e30;
        let members = [&company[0], &taken, &company[2], &company[3], &company[4]].map(|recipe| (recipe, false));
        for of_rank in train_together_on(mesh, &members, None) {
            let [Ok(whole), Err(taken), Ok(_), Err(Error::Divergence(_)), Ok(_)] = &of_rank[..] else {
                panic!("{name}: {of_rank:?}")
            };
            assert_eq!((whole.steps, taken.exit()), (61, Exit::Arguments), "{name}: {taken}");
        }
        picked.iter().for_each(|&index| assert_same(&fixture, &company[index], &apart[index]));
        // One rank is asked to stop; resumed they come to the same weights.
        let stopped = recipes(&fixture, "stopped");
        let members =
            |resume: [bool; 3]| picked.map(|index| &stopped[index]).into_iter().zip(resume).collect::<Vec<_>>();
        for of_rank in train_together_on(mesh, &members([false; 3]), Some(40)) {
            let steps: Vec<Option<u64>> = of_rank
                .iter()
                .map(|result| match result {
                    Err(Error::Interrupted { step, .. }) => Some(*step),
                    _ => None,
                })
                .collect();
            assert_eq!(steps, [Some(40), None, Some(40)], "{name}: {of_rank:?}");
        }
        let left: Vec<(&Recipe, bool)> =
            members([true; 3]).into_iter().filter(|(recipe, _)| recipe.train.tokens.is_none()).collect();
        for of_rank in train_together_on(mesh, &left, None) {
            of_rank.into_iter().for_each(|result| drop(result.expect("it goes on")));
        }
        for &index in &picked {
            // Sums over ranks are added in another order where a run was stopped.
            let learned = |recipe: &Recipe| {
                let mut tiles = tiles(&fixture.path(&recipe.run.dir));
                tiles.retain(|(holds, _), _| holds != "Shared");
                tiles
            };
            assert_eq!(learned(&stopped[index]), learned(&apart[index]), "{name}: {}", stopped[index].run.dir);
        }
    }
}

/// As many of the first train as the memory holds; the others are told so, and nothing of them was begun.
#[test]
fn those_that_find_no_room_are_not_begun() {
    let fixture = Fixture::with_data();
    let mut company = recipes(&fixture, "company");
    company.truncate(4);
    for recipe in &mut company {
        (recipe.sae.features, recipe.train.tokens, recipe.train.adam) = (2048, Some(2 * 256), Adam::Dense);
    }
    let data = Data::open(&company[0], None).expect("rows");
    let sizes: Vec<_> = company.iter().map(|recipe| (recipe, DataSize::of(recipe, &data).expect("a size"))).collect();
    let device = Cpu::new(Some(1)).expect("threads");
    let two = (0..200)
        .map(|power| 1.1_f64.powi(power) as usize)
        .find(|&ranks| plan::how_many_fit(&device, &sizes, ranks) == 2);
    let two = two.expect("some share of this memory holds two");
    // Their gradients and batches too, or they would swap. What is free changes from one moment to the next.
    let shape = plan::shape(&company[0], data.extent(), device.axes().place);
    let needed = 2 * device.bytes(shape, Purpose::Training).total();
    let free = memory::available().expect("Linux says it") / two as u64;
    assert!(needed <= free + free / 4, "{needed} {free}");
    let members: Vec<(&Recipe, bool)> = company.iter().map(|recipe| (recipe, false)).collect();
    let results = trained_among(&members, None, two);
    let done = results.iter().take_while(|(result, _)| result.is_ok()).count();
    assert!((1..4).contains(&done), "{results:?}");
    for (recipe, (result, told)) in company.iter().zip(&results).skip(done) {
        assert!(matches!(result, Err(Error::NotBegun(_))) && told.lines.is_empty(), "{result:?}");
        assert!(!fixture.path(&recipe.run.dir).join("config.toml").exists());
    }
    // With room for them they train.
    for (result, _) in trained_together(&members[done..], None) {
        result.expect("it trains");
    }
}

/// Rows that `data.skip` leaves out since may have changed the scale that a run found at its start: then it trains apart from those that begin now.
#[test]
fn runs_of_two_scales_train_apart() {
    let fixture = Fixture::with_data();
    let mut company = recipes(&fixture, "company");
    company.truncate(3);
    stop(&company[0], false, 15);
    let shard = std::fs::read_dir(fixture.path("train")).expect("a folder").filter_map(|entry| {
        let name = entry.expect("a file").file_name().into_string().expect("UTF-8");
        name.ends_with(".parquet").then_some(name)
    });
    let shard = shard.min().expect("a shard");
    company.iter_mut().for_each(|recipe| recipe.data.skip = (0..500).map(|row| format!("{shard}:{row}")).collect());
    let members = [(&company[0], true), (&company[1], false), (&company[2], false)];
    let results: Vec<_> = trained_together(&members, None).into_iter().map(|(result, _)| result).collect();
    assert!(matches!(&results[..], [Ok(_), Err(Error::NotBegun(_)), Err(Error::NotBegun(_))]), "{results:?}");
    assert!(!fixture.path("company/short/error-0.json").exists());
    let later = [(&company[1], true), (&company[2], true)];
    trained_together(&later, None).into_iter().for_each(|(result, _)| drop(result.expect("it trains")));
}

/// One whose gradient is not finite ends alone, with a note of its own.
#[test]
fn one_that_diverges_stops_no_other() {
    let fixture = Fixture::with_data();
    let (apart, mut company) = (recipes(&fixture, "alone"), recipes(&fixture, "company"));
    company.truncate(3);
    company[1].train.lr = 1e30;
    finish(&apart[0]);
    let members: Vec<(&Recipe, bool)> = company.iter().map(|recipe| (recipe, false)).collect();
    let results: Vec<_> = trained_together(&members, None).into_iter().map(|(result, _)| result).collect();
    assert!(matches!(&results[..], [Ok(_), Err(Error::Divergence(_)), Ok(_)]), "{results:?}");
    assert_same(&fixture, &company[0], &apart[0]);
    let note = json(&fixture.path("company/short/error-0.json"));
    assert_eq!(note["exit_code"], 70, "{note}");
    for name in ["whole", "lr"] {
        assert!(!fixture.path(format!("company/{name}/error-0.json")).exists(), "{name}");
    }
}

/// A row that holds a NaN concerns all: each saves its weights before that step, and says what to leave out.
#[test]
fn a_bad_row_ends_all_with_their_weights_saved() {
    let fixture = Fixture::new();
    for (set, seed) in [("train", 3), ("eval", 4)] {
        let mut rows = plain_rows(2000, 16, seed);
        if set == "train" {
            rows[1500 * 16] = f32::NAN;
        }
        write_shards(&fixture.path(set), 16, &rows, Dtype::F32, 1000);
    }
    let mut company = recipes(&fixture, "company");
    company.truncate(2);
    for recipe in &mut company {
        (recipe.data.order_rows, recipe.train.tokens, recipe.train.batch) = (Some(2000), None, 100);
    }
    company[1].train.tokens = Some(300);
    let members: Vec<(&Recipe, bool)> = company.iter().map(|recipe| (recipe, false)).collect();
    for (recipe, (result, _)) in company.iter().zip(trained_together(&members, None)) {
        match result {
            Ok(summary) => assert_eq!(summary.steps, 3),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("1 of its rows holds NaN") && text.contains("data.skip="), "{text}");
                let last = checkpoints::committed(&fixture.path(&recipe.run.dir)).pop().expect("a checkpoint");
                assert!(last.ends_with("step-0000000017/attempt-0001"), "{text}");
            }
        }
    }
}

/// The order is that of `data.order_rows`, whatever part of it a run takes.
#[test]
fn runs_of_different_lengths_see_the_same_rows() {
    let fixture = Fixture::with_data();
    let mut runs = recipes(&fixture, "rows");
    runs.truncate(2);
    for run in &mut runs {
        run.log.rows = true;
        finish(run);
    }
    let rows = |run: &Recipe| json_lines(&fixture.path(&run.run.dir).join("rows.jsonl"));
    let (whole, short) = (rows(&runs[0]), rows(&runs[1]));
    assert_eq!((whole.len(), short.len()), (61, 20));
    assert_eq!(whole[..20], short[..]);
}

#[test]
fn what_cannot_share_a_stream_is_refused() {
    let fixture = Fixture::with_data();
    let all = recipes(&fixture, "x");
    assert!(all.iter().all(|recipe| share_a_stream(recipe, &all[0])));
    let changed = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = all[1].clone();
        change(&mut recipe);
        recipe
    };
    let others = [
        changed(&|recipe| recipe.train.batch = 128),
        changed(&|recipe| recipe.data.seed = 1),
        changed(&|recipe| recipe.data.order_rows = None),
        changed(&|recipe| recipe.train.precision = Precision::Mixed),
        changed(&|recipe| recipe.train.moments = Moments::Bf16),
    ];
    assert!(others.iter().all(|other| !share_a_stream(other, &all[0])));
    for (result, _) in trained_together(&[(&all[0], false), (&others[1], false)], None) {
        let error = result.expect_err("other rows");
        assert!(error.to_string().contains("train them apart") && error.exit().code() == 64, "{error}");
    }
    // They are two runs that have not begun: their folders are free.
    assert!(!fixture.path("x/whole/config.toml").exists());
    for (tokens, says) in [
        (Some(300), "write 256 or 512"),
        (Some(ORDER_ROWS - 1), "write 15360 or 15401"),
        (Some(ORDER_ROWS + 1), "but data.train has 15401 rows"),
    ] {
        let (result, _) = trained(&changed(&|recipe| recipe.train.tokens = tokens), false, None);
        let error = result.expect_err("no whole batches").to_string();
        assert!(error.contains(says), "{error}");
    }
    let less = changed(&|recipe| (recipe.data.order_rows, recipe.train.tokens) = (Some(1024), Some(2048)));
    let error = trained(&less, false, None).0.expect_err("more than the order has").to_string();
    assert!(error.contains("more than the 1024 of data.order_rows"), "{error}");
}
