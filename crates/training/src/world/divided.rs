//! A model that the ranks hold together, and the first rank at work with it alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::bail;
use model::division::{Division, Gathering, Ranks, Request};
use stage::{Interrupted, Signal};
use tch::{Kind, Tensor};

use super::{Pending, Together, World};

/// What the first rank tells the others while it leads: a kind and two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Give(Request),
    Done,
    Stopped(Signal),
    Failed,
}

impl Order {
    fn to_numbers(self) -> [i64; 3] {
        match self {
            Self::Give(Request::Unit(unit)) => [0, unit as i64, 0],
            Self::Give(Request::Part { block, part }) => [1, block as i64, part as i64],
            Self::Done => [2, 0, 0],
            Self::Stopped(signal) => [3, i64::from(signal.number()), 0],
            Self::Failed => [4, 0, 0],
        }
    }

    fn from_numbers(numbers: [i64; 3]) -> Self {
        let [kind, first, second] = numbers;
        let signal = || Signal::ALL.into_iter().find(|s| i64::from(s.number()) == first);
        match kind {
            0 => Self::Give(Request::Unit(first as usize)),
            1 => Self::Give(Request::Part { block: first as usize, part: second as usize }),
            2 => Self::Done,
            3 => signal().map_or(Self::Failed, Self::Stopped),
            _ => Self::Failed,
        }
    }
}

impl World {
    /// These ranks as the holders of a model, where there are several and `divide` says so.
    #[must_use]
    pub fn holders(&self, divide: bool) -> Option<Arc<dyn Ranks>> {
        (divide && self.is_shared()).then(|| Arc::new(self.clone()) as Arc<dyn Ranks>)
    }

    /// Lets the first rank do `f` by itself and returns what it gives; `None` in the others. Where the model is divided, these
    /// stay until it is done and give it what they hold.
    ///
    /// # Errors
    /// Those of `f`, of which the others learn; a rank that is gone, or the first one if it needs nothing for longer than the
    /// ranks' patience.
    pub fn lead<T>(
        &self,
        division: Option<&Division>,
        f: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        let (Some(together), Some(division)) = (&self.together, division) else {
            return self.is_first().then(f).transpose();
        };
        if !self.is_first() {
            return serve(together, division).map(|()| None);
        }
        together.leads.store(true, Ordering::Relaxed);
        let result = f().and_then(|result| Ok(division.release_all().map(|()| result)?));
        together.leads.store(false, Ordering::Relaxed);
        let order = match &result {
            Ok(_) => Order::Done,
            Err(error) => error
                .downcast_ref()
                .map_or(Order::Failed, |Interrupted(signal)| Order::Stopped(*signal)),
        };
        // Where a rank is gone nobody is to be told.
        if !together.failed.load(Ordering::Relaxed) {
            tell(together, order)?;
        }
        result.map(Some)
    }
}

fn tell(together: &Together, order: Order) -> anyhow::Result<()> {
    together.broadcast(&Tensor::from_slice(&order.to_numbers()))
}

/// Gives the first rank what it asks for.
fn serve(together: &Together, division: &Division) -> anyhow::Result<()> {
    loop {
        let told = Tensor::zeros([3], (Kind::Int64, tch::Device::Cpu));
        together.broadcast(&told)?;
        let mut numbers = [0; 3];
        told.f_copy_data(&mut numbers, 3)?;
        match Order::from_numbers(numbers) {
            Order::Give(request) => division.answer(request)?,
            // As the first rank does, so that all have the same parts whole afterwards: none.
            Order::Done => return Ok(division.release_all()?),
            Order::Stopped(signal) => return Err(Interrupted(signal).into()),
            Order::Failed => bail!("rank 0 has failed; its own output says why"),
        }
    }
}

impl Ranks for World {
    fn rank(&self) -> usize {
        self.share.rank
    }

    fn size(&self) -> usize {
        self.share.size
    }

    fn all_gather(
        &self,
        request: Request,
        all: &Tensor,
        own: &Tensor,
    ) -> anyhow::Result<Box<dyn Gathering>> {
        if let Some(together) = &self.together
            && together.leads.load(Ordering::Relaxed)
        {
            tell(together, Order::Give(request))?;
        }
        let pending = self.start(|of_all| of_all.all_gather(all, own))?;
        Ok(Box::new(Coming { world: self.clone(), pending }))
    }
}

#[derive(Debug)]
struct Coming {
    world: World,
    pending: Pending,
}

impl Gathering for Coming {
    fn wait(self: Box<Self>) -> anyhow::Result<()> {
        self.world.finish(self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_are_told() {
        let part = Request::Part { block: 3, part: 2 };
        let orders = [Order::Give(Request::Unit(7)), Order::Give(part), Order::Done, Order::Failed];
        for order in orders.into_iter().chain(Signal::ALL.map(Order::Stopped)) {
            assert_eq!(Order::from_numbers(order.to_numbers()), order);
        }
    }
}
