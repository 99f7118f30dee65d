//! Sums and copies of tensors wherever they are: between GPUs by NCCL, otherwise by Gloo in the host's memory.

use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::Result;
use torch_ext::collective::{Group, Reduction, Work};

/// The ranks' groups.
#[derive(Debug, Clone)]
pub(super) struct Collectives {
    pub(super) host: Group,
    /// That of the ranks' GPUs, and which this rank's is.
    pub(super) gpus: Option<(Device, Group)>,
}

/// An operation under way. Its tensors are not to be touched until [`wait`](Self::wait) has returned.
#[derive(Debug)]
#[must_use = "the operation may still be under way"]
pub(super) struct Moving {
    work: Work,
    /// A tensor, and the copy of it that the operation changes, where that could not change the tensor itself.
    copied: Option<(Tensor, Tensor)>,
}

impl Moving {
    /// Waits until the tensors are there.
    ///
    /// # Errors
    /// A rank is gone, or did not take part in time.
    pub(super) fn wait(self) -> Result<()> {
        self.work.wait()?;
        if let Some((mut tensor, copy)) = self.copied {
            no_grad(|| tensor.copy_(&copy.view_as(&tensor)));
        }
        Ok(())
    }
}

impl Collectives {
    /// As [`Group::all_reduce`], of any tensor.
    pub(super) fn all_reduce(&self, tensor: &Tensor, how: Reduction) -> Result<Moving> {
        self.in_place(tensor, |group, tensor| group.all_reduce(tensor, how))
    }

    /// As [`Group::broadcast`], of any tensor.
    pub(super) fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Moving> {
        self.in_place(tensor, |group, tensor| group.broadcast(tensor, root))
    }

    /// As [`Group::reduce_scatter`], of any tensors on one device.
    pub(super) fn reduce_scatter(&self, own: &Tensor, all: &Tensor) -> Result<Moving> {
        self.in_place(own, |group, own| {
            group.reduce_scatter(&own.view(-1), &plain(all, own.device()).view(-1))
        })
    }

    /// As [`Group::all_gather`], of any tensors of one type on one device.
    pub(super) fn all_gather(&self, all: &Tensor, own: &Tensor) -> Result<Moving> {
        // Only moved, so the type may be one that nothing can add.
        let bytes = |t: &Tensor| t.view(-1).view_dtype(Kind::Uint8);
        self.in_place(all, |group, all| {
            group.all_gather(&bytes(all), &bytes(&plain(own, all.device())))
        })
    }

    /// Begins what changes `tensor`, on it or on a copy where the group takes it.
    fn in_place(
        &self,
        tensor: &Tensor,
        begin: impl FnOnce(&Group, &Tensor) -> Result<Work>,
    ) -> Result<Moving> {
        let device = tensor.device();
        let gpus = self.gpus.as_ref().filter(|(own, _)| *own == device);
        let (place, group) = gpus.map_or((Device::Cpu, &self.host), |(_, group)| (device, group));
        let there = plain(tensor, place);
        let copied = there.data_ptr() != tensor.data_ptr();
        let work = begin(group, &there)?;
        Ok(Moving { work, copied: copied.then(|| (tensor.shallow_clone(), there)) })
    }
}

/// The numbers one after another on `device`: the tensor itself where they are.
fn plain(tensor: &Tensor, device: Device) -> Tensor {
    no_grad(|| tensor.detach().to_device(device).contiguous())
}
