//! What may be said of a dataset when it is opened.

/// How a dataset is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A manifest (path or URL) of an earlier opening, such as [`crate::Dataset::manifest`] saved in a run directory. If it exists it
    /// wins over one beside the data, so that a run keeps its identity when somebody inspects the data meanwhile, and its
    /// checksums are verified. Data of another shape is refused.
    pub manifest: Option<String>,
    /// The activation column, where its name or type does not say.
    pub column: Option<String>,
}
