//! Pages that a browser opens: of a run, of scaling laws. Their numbers are those of the files beside them, and Chromium shows them
//! without a complaint, without a network, in light, in dark and on a telephone.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tests::browser::{Browser, DARK, PHONE, WIDE};
use tests::fixture::{Fixture, json, json_lines};
use tests::s3::S3;
use tests::{need, sae};

/// A run with evaluations, whose folder has a name that only an escape makes harmless.
const RUN: &str = "a <b>&'run";

fn trained() -> Fixture {
    let fixture = Fixture::with_data();
    let mut recipe = fixture.recipe(RUN);
    recipe.data.eval = vec![fixture.text("eval")];
    recipe.eval.every = 20;
    sae::run(&["train", &fixture.save("recipe", &recipe)]).exits(0);
    fixture
}

/// Text of the cells of a page, row by row.
fn rows(html: &str) -> Vec<Vec<String>> {
    let cells = |row: &str| {
        let cells = row.split("<td").skip(1).filter_map(|cell| cell.split_once('>')?.1.split_once("</td>"));
        cells
            .map(|cell| cell.0.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&"))
            .collect()
    };
    html.split("<tr>").skip(1).map(cells).collect()
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display()).replace(' ', "%20").replace('<', "%3C").replace('>', "%3E")
}

#[test]
fn numbers_on_the_page_of_a_run_are_those_of_its_files() {
    let fixture = trained();
    let html = fs::read_to_string(fixture.path(RUN).join("report.html")).expect("a page");
    let rows = rows(&html);
    let of = |name: &str| {
        let row = rows.iter().find(|row| row.first().is_some_and(|cell| cell == name));
        row.unwrap_or_else(|| panic!("{name} is not on the page"))[1].clone()
    };
    let summary = json(&fixture.path(RUN).join("summary.json"));
    for (name, value) in summary.as_object().expect("an object") {
        match value {
            Value::Null | Value::Object(_) => {}
            Value::String(text) => assert_eq!(&of(name), text),
            other => assert_eq!(of(name), other.to_string(), "{name}"),
        }
    }
    assert_eq!(of("density.silent"), summary["density"]["silent"].to_string());
    assert_eq!([of("sae.features"), of("train.lr"), of("run.dir")], ["256".into(), "0.001".into(), fixture.text(RUN)]);
    // Every number of every line is among those behind the charts.
    let lines = json_lines(&fixture.path(RUN).join("metrics.jsonl"));
    for line in &lines {
        let kind = if line["kind"] == "eval" { "held-out" } else { "training" };
        for name in ["loss", "l0", "explained_variance"] {
            let wanted = [kind.to_owned(), line["tokens"].to_string()];
            let number = line[name].as_f64().expect("a number");
            let same = |row: &&Vec<String>| row.len() == 3 && row[..2] == wanted && row[2].parse() == Ok(number);
            assert!(rows.iter().any(|row| same(&row)), "{name} {number} of {wanted:?} is not on the page");
        }
    }
    assert!(lines.len() > 8 && html.contains("Run a &lt;b&gt;&amp;'run</title>"));
}

/// A browser that is given the URL of an object shows what the store says is a page, and downloads anything else.
#[test]
fn pages_in_a_bucket_are_stored_as_pages() {
    let Some(python) = need::python() else { return };
    let (fixture, s3) = (Fixture::with_data(), S3::start(&python));
    let mut recipe = fixture.recipe("run");
    recipe.run.dir = "s3://bucket/run".into();
    let environment = s3.environment();
    let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    sae::run_with(&["train", &fixture.save("recipe", &recipe)], &environment).exits(0);
    for (key, expected) in [
        ("run/report.html", "text/html; charset=utf-8"),
        ("run/summary.json", "application/json"),
        ("run/config.toml", "text/plain; charset=utf-8"),
    ] {
        assert_eq!(s3.content_type(key), expected, "{key}");
    }
}

#[test]
fn a_page_that_cannot_be_written_fails_no_run() {
    let fixture = Fixture::with_data();
    fs::create_dir_all(fixture.path("run/report.html/taken")).expect("a folder");
    let recipe = fixture.save("recipe", &fixture.recipe("run"));
    sae::run(&["train", &recipe]).exits(0).says(&["report.html was not written, and the run goes on"]);
    assert!(fixture.path("run/summary.json").exists());
}

/// A run that was interrupted has the page of its last checkpoint, and goes on with the curves that it had.
#[test]
fn a_run_in_progress_has_a_page_and_a_resumed_one_keeps_its_curves() {
    let fixture = Fixture::with_data();
    let recipe = fixture.save("recipe", &fixture.recipe("run"));
    let page = fixture.path("run/report.html");
    let mut child = sae::sae(&["train", &recipe]).stderr(std::process::Stdio::null()).spawn().expect("it starts");
    let mut seen = String::new();
    while child.try_wait().expect("a process").is_none() && !seen.contains("in training") {
        seen = fs::read_to_string(&page).unwrap_or_default();
    }
    sae::signal(&child, "TERM");
    let code = child.wait().expect("a process").code();
    assert!(seen.contains("in training: ") && seen.contains(" of 61 steps") && seen.ends_with("</html>"), "{code:?}");
    if code == Some(75) {
        sae::run(&["train", &recipe, "--resume"]).exits(0);
    }
    let html = fs::read_to_string(&page).expect("a page");
    assert!(html.contains("done: 61 steps"));
    let training = rows(&html).into_iter().filter(|row| row.len() == 3 && row[0] == "training").count();
    let lines = json_lines(&fixture.path("run/metrics.jsonl")).len();
    assert_eq!(training, 4 * lines, "loss, L0, explained variance, dead share of every line");
}

/// What every page must be in a browser.
fn look(browser: &mut Browser, url: &str, charts: u64) {
    let mut seen = Vec::new();
    for view in [WIDE, DARK, PHONE] {
        browser.open(url, view);
        assert_eq!(browser.complaints(), Vec::<Value>::new(), "{view:?}");
        assert_eq!(browser.requests(), [url.to_owned()], "{view:?}");
        let overflow = browser.value("document.documentElement.scrollWidth - window.innerWidth");
        assert!(overflow.as_f64().is_some_and(|overflow| overflow <= 0.0), "{overflow} pixels too wide in {view:?}");
        assert_eq!(browser.value("document.querySelectorAll('svg.chart').length"), charts);
        // Each has its lines, and nothing sticks out of it.
        let empty = "[...document.querySelectorAll('svg.chart')].filter(svg => !svg.querySelector('.line, .mark, .bar')).length";
        assert_eq!(browser.value(empty), 0, "{view:?}");
        let outside = "[...document.querySelectorAll('svg.chart > text, svg.chart > g > text')].filter(text => {
            const [a, b] = [text.getBoundingClientRect(), text.closest('svg').getBoundingClientRect()];
            return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
        }).map(text => text.textContent)";
        assert_eq!(browser.value(outside), Value::Array(Vec::new()), "text is cut off in {view:?}");
        let colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector('.chart .title')).fill]";
        seen.push(browser.value(colours));
        let size = browser.value("document.querySelector('svg.chart').getBoundingClientRect().width / 400");
        assert!(size.as_f64().is_some_and(|size| size > 0.8), "letters of {size} of their size in {view:?}");
    }
    assert_eq!(seen[0], seen[2]);
    assert!((0..3).all(|colour| seen[0][colour] != seen[1][colour]), "{seen:?}");
}

#[test]
fn chromium_shows_the_page_of_a_run() {
    let fixture = trained();
    let Some(mut browser) = Browser::start() else { return };
    let url = url(&fixture.path(RUN).join("report.html"));
    look(&mut browser, &url, 6);
    // The last place of the first chart, pointed at, says its numbers.
    browser.open(&url, WIDE);
    let visible =
        "getComputedStyle([...document.querySelector('svg.chart').querySelectorAll('.readout')].at(-1)).visibility";
    assert_eq!(browser.value(visible), "hidden");
    let place = browser.value(
        "(() => { const hit = [...document.querySelector('svg.chart').querySelectorAll('rect.hit')].at(-1).getBoundingClientRect();
            return [hit.left + hit.width / 3, hit.top + 5]; })()",
    );
    browser.point(place[0].as_f64().expect("x"), place[1].as_f64().expect("y"));
    let text = browser.value("[...document.querySelectorAll('.readout')].filter(one => getComputedStyle(one).visibility == 'visible').map(one => one.textContent).join()");
    assert!(text.as_str().is_some_and(|text| text.contains("tokens: 15.4k") && text.contains("held-out")), "{text}");
}

/// A table of runs over seven budgets, five sizes and two seeds each, with learning rates swept at three of them; a sine makes its noise.
fn sweep() -> String {
    let mut table = "run,features,steps,loss,lr,seed,budget,l0,explained_variance,dead_fraction\n".to_owned();
    for (budget, size, seed) in
        (0..7).flat_map(|budget| (-2..=2).flat_map(move |size| [(budget, size, 1u64), (budget, size, 2)]))
    {
        let compute = 1e6 * 10f64.powf(0.5 * f64::from(budget));
        let features = (1.66 * compute.powf(0.566) * 2f64.powf(0.5 * f64::from(size))).round();
        let steps = (compute / features).round();
        let rates: &[f64] = if budget % 3 == 0 && size == 0 { &[2e-4, 1e-3, 5e-3] } else { &[1e-3] };
        for &lr in rates {
            let noise = 0.004 * (features + 1.7 * steps + seed as f64).sin();
            let off = (lr / (0.02 * compute.powf(-0.2))).ln();
            let loss = 1.9 + 40.0 * features.powf(-0.35) + 20.5 * steps.powf(-0.46) + 0.002 * off * off + noise;
            let (l0, explained, dead) = (8.0 + features.ln(), 1.0 - 1.0 / features.ln(), 0.01 + 2e-7 * features);
            let run = format!("sweep/<f{features}>-s{steps}-{seed}-{lr}");
            writeln!(table, "{run},{features},{steps},{loss:?},{lr},{seed},{compute},{l0},{explained},{dead}")
                .expect("text");
        }
    }
    table
}

/// Laws of [`sweep`] in a folder `laws`.
fn fitted() -> Fixture {
    let fixture = Fixture::new();
    fs::write(fixture.path("runs.csv"), sweep()).expect("written");
    let (runs, out) = (fixture.text("runs.csv"), fixture.text("laws"));
    sae::run(&["scaling", "fit", "--runs", &runs, "--out", &out, "--replicates", "100"]).exits(0);
    fixture
}

#[test]
fn numbers_on_the_page_of_laws_are_those_of_laws_json() {
    let fixture = fitted();
    let laws = json(&fixture.path("laws/laws.json"));
    let html = fs::read_to_string(fixture.path("laws/report.html")).expect("a page");
    let rows = rows(&html);
    let cells: BTreeSet<&str> = rows.iter().flatten().map(String::as_str).collect();
    for law in ["surface.E", "surface.alpha", "features_opt.exponent", "steps_opt.coefficient", "lr_opt.exponent"] {
        let row = rows.iter().find(|row| row.first().is_some_and(|cell| cell == law)).expect("a row");
        let value = law.split('.').fold(&laws, |value, key| &value[key]);
        assert_eq!(row[1..], ["value", "low", "high"].map(|end| value[end].to_string()), "{law}");
    }
    let runs = laws["runs"].as_array().expect("runs");
    assert!(runs.len() > 70);
    for run in runs {
        for number in ["features", "steps", "loss", "fitted", "residual", "l0"] {
            assert!(cells.contains(run[number].to_string().as_str()), "{number} of {run}");
        }
    }
    for warning in laws["warnings"].as_array().expect("warnings") {
        let text = warning["text"].as_str().expect("text");
        assert!(html.find(text).is_some_and(|at| at < html.find("<svg").expect("a chart")), "{text}");
    }
}

#[test]
fn chromium_shows_the_page_of_scaling_laws_and_each_of_its_plots() {
    let fixture = fitted();
    let Some(mut browser) = Browser::start() else { return };
    look(&mut browser, &url(&fixture.path("laws/report.html")), 15);
    // A point tells its configuration.
    let title = browser.value("document.querySelector('.asked title').textContent");
    assert!(title.as_str().is_some_and(|title| title.contains("seed 1") && title.contains("sweep/<f")), "{title}");
    let plots = fs::read_dir(fixture.path("laws/plots")).expect("plots").flatten().map(|entry| entry.path());
    let plots: Vec<_> = plots.collect();
    assert_eq!(plots.len(), 15, "{plots:?}");
    for plot in plots {
        let mut papers = Vec::new();
        for view in [WIDE, DARK] {
            browser.open(&url(&plot), view);
            assert_eq!(browser.complaints(), Vec::<Value>::new(), "{}", plot.display());
            assert_eq!(browser.value("document.documentElement.tagName"), "svg", "{}", plot.display());
            papers.push(browser.value("getComputedStyle(document.querySelector('.paper')).fill"));
        }
        assert_ne!(papers[0], papers[1], "{}", plot.display());
    }
}

/// What the tests above look for is found where it is.
#[test]
fn chromium_complains_of_a_page_that_is_wrong() {
    let Some(mut browser) = Browser::start() else { return };
    let fixture = Fixture::new();
    let page = fixture.path("wrong.html");
    let policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">";
    let body = "<img src='http://127.0.0.1:9/a.png'><script>1</script><p style='width: 3000px'>wide</p>";
    fs::write(&page, format!("<!doctype html>{policy}<meta name=viewport content='width=device-width'>{body}"))
        .expect("written");
    browser.open(&url(&page), PHONE);
    let refused = browser.complaints();
    assert!(refused.len() >= 3, "the image, the script and the style: {refused:#?}");
    fs::write(&page, body).expect("written");
    browser.open(&url(&page), WIDE);
    assert_eq!(browser.requests(), [url(&page), "http://127.0.0.1:9/a.png".to_owned()]);
    let overflow = browser.value("document.documentElement.scrollWidth - window.innerWidth");
    assert!(overflow.as_f64().is_some_and(|overflow| overflow > 1000.0), "{overflow}");
}
