//! What the runs on one stream find out, or take, once for all of them.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use kernels::Device;

use super::reader::Pool;
use crate::Error;
use crate::buffers::Buffers;
use crate::data::Data;
use crate::data::survey::{self, Survey};
use crate::report::centre::Centre;
use crate::report::recovery::Truth;

/// What the runs on one stream find out, or take, once for all of them. Their data are one.
pub(super) struct Shared<D: Device> {
    /// Memory for batches.
    pub(super) pool: Pool<D>,
    /// The middle of the held-out rows that were measured last, and how many were asked for.
    pub(super) centre: RefCell<Option<(u64, Centre)>>,
    /// The directions that the data were made of, when they are known and of the data's width.
    pub(super) truth: Option<Truth>,
    survey: OnceCell<Survey>,
    looked_at_held_out: OnceCell<()>,
}

impl<D: Device> Shared<D> {
    /// Of runs on `data`.
    ///
    /// # Errors
    /// [`kernels::Error::OutOfMemory`]; those of [`Truth::beside`].
    pub(super) fn of(device: &D, data: &Data) -> Result<Rc<Self>, Error> {
        let width = data.train.width();
        let truth = Truth::beside(&data.reading.data.train)?.filter(|truth| truth.width == width);
        let value_bytes = data.eval.iter().chain([&data.train]).map(|set| set.dtype().size()).max().unwrap_or(4);
        let batch = data.extent().largest_batch();
        let buffers = (0..=D::AHEAD).map(|_| Buffers::new(device, batch, width, value_bytes));
        let pool = Rc::new(RefCell::new(buffers.collect::<Result<Vec<_>, _>>()?));
        let (survey, looked_at_held_out) = (OnceCell::new(), OnceCell::new());
        Ok(Rc::new(Shared { pool, centre: RefCell::new(None), truth, survey, looked_at_held_out }))
    }

    /// What a sample of the rows says, which the log hears where `tells`.
    ///
    /// # Errors
    /// Those of [`Survey::of`].
    pub(super) fn survey(&self, data: &Data, tells: bool) -> Result<&Survey, Error> {
        if let Some(survey) = self.survey.get() {
            return Ok(survey);
        }
        let survey = Survey::of(data)?;
        if tells {
            survey.tell(data);
        }
        Ok(self.survey.get_or_init(|| survey))
    }

    /// Says in the log when held-out rows are not finite.
    ///
    /// # Errors
    /// Those of the loader, but for rows that may be whole again by the first evaluation, and until then cost no step.
    pub(super) fn look_at_held_out(&self, data: &Data, filter: &loader::RowFilter) -> Result<(), Error> {
        if self.looked_at_held_out.set(()).is_err() {
            return Ok(());
        }
        match survey::look_at_held_out(data, filter) {
            Err(Error::Loader(error)) if survey::is_damage(&error) => {
                tracing::warn!("held-out rows were not looked at: {}", Error::from(error));
                Ok(())
            }
            looked => looked,
        }
    }
}
