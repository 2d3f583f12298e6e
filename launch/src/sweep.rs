//! `sae sweep`: many runs of one recipe with other values of some keys, each done once, by as many workers as there are.
//!
//! `spec.rs` says which configurations a sweep has, `values.rs` which values an axis, `presets.rs` which a grid for scaling laws, `id.rs` by what two of them are the same, `named.rs` what a command line may name. `folder.rs`
//! is where they lie and what has become of each, `claim.rs` who trains which. `worker.rs` trains them, `group.rs` some of them on one
//! device, `mesh.rs` one of them on several, `display.rs` shows that. `status.rs` looks from anywhere, `plan.rs` before anything begins.
//!
//! **A sweep is a folder and no service.** Workers know of each other only by what lies there: the configurations, a run folder for each, and
//! claims. A claim is a key that its owner writes again and again; others hold it for as long as they see it change, by their own clock. So
//! no two clocks are compared, and no store has to refuse a second writer. Where two hold the same claim after all, as a file system may lead
//! them to that shows new files late, both train the same run: a run folder is made for that, and loses nothing but the time of one.

pub mod claim;
pub mod display;
pub mod folder;
pub mod group;
pub mod id;
pub mod mesh;
pub mod named;
pub mod plan;
pub mod presets;
pub mod spec;
pub mod status;
pub mod values;
pub mod worker;
