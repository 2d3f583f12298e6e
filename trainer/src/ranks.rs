//! What ranks come to together: how they find each other, which rows each brings, what one hears of another.

pub mod communication;
pub mod meeting;
pub mod note;
pub mod roll_call;
pub(crate) mod together;
