use kernels::cuda::{
    Cuda, Precision,
    cache::Cache,
    card::{Card, Options},
};
use tests::cases::{self, Numbers};
#[test]
fn emulated() {
    let Some(driver) = std::env::var_os("EMU") else { return };
    let options = Options {
        driver: Some(driver.into()),
        cache: Cache::usual(),
        nvrtc_folder: std::env::var_os("NV").map(Into::into),
    };
    let card = Card::open(0, options).expect("card");
    let only = std::env::var("ONLY").unwrap_or_default();
    for (precision, numbers) in [(Precision::F32, Numbers::F32), (Precision::Mixed, Numbers::Mixed)] {
        if std::env::var("PREC").is_ok_and(|p| p != format!("{precision:?}")) {
            continue;
        }
        let device = Cuda::new(&card, precision).expect("kernels");
        for (name, check) in cases::all() {
            if !name.contains(&only) {
                continue;
            }
            let t = std::time::Instant::now();
            eprintln!("{precision:?} {name}");
            check(&device, numbers);
            eprintln!("   {:.1} s", t.elapsed().as_secs_f64());
        }
    }
}
