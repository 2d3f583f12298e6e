//! The operations of a step, one file each.

pub mod adam;
pub mod backward;
pub mod count;
pub mod decode;
pub mod dense;
pub mod encode;
pub mod exchange;
pub mod normalize;
pub mod residual;
