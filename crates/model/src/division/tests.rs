use super::*;

#[test]
fn slices_are_whole_blocks_and_make_up_the_parameter() {
    for (numel, size, expected) in [
        (1000, 2, vec![0..512, 512..1000]),
        (100, 2, vec![0..100, 100..100]),
        (1024, 4, vec![0..256, 256..512, 512..768, 768..1024]),
        (1025, 4, vec![0..512, 512..1024, 1024..1025, 1025..1025]),
        (7, 2, vec![0..7, 7..7]),
    ] {
        let slices: Vec<_> = (0..size).map(|rank| slice(numel, rank, size)).collect();
        assert_eq!(slices, expected, "{numel} in {size}");
    }
}

#[test]
fn what_is_written_into_a_table_is_read_again() {
    for numel in [3, 256, 600, 1025] {
        let numbers = Tensor::arange(numel, (Kind::Float, Device::Cpu)) + 1.0;
        let slot = Slot::new(numel, 5, 3);
        let table = Tensor::zeros([3, 5 + slot.width], (Kind::Float, Device::Cpu));
        slot.write(&table, &numbers);
        assert_eq!(table.sum(Kind::Double).double_value(&[]), (numel * (numel + 1) / 2) as f64);
        let again = Tensor::zeros_like(&numbers);
        slot.read(&table, &again);
        assert_eq!(again, numbers);
        let own: Vec<f32> = (0..3)
            .flat_map(|rank| {
                let row = table.get(rank);
                Vec::<f32>::try_from(slot.own(&row, rank as usize, 3)).unwrap()
            })
            .collect();
        assert_eq!(own, Vec::<f32>::try_from(&numbers).unwrap());
    }
}

/// A rank on its own that keeps a record of what is begun and waited for.
#[derive(Debug, Default)]
struct Recorded(Arc<Mutex<Vec<String>>>);

#[derive(Debug)]
struct Wait(Arc<Mutex<Vec<String>>>, String);

impl Ranks for Recorded {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(
        &self,
        request: Request,
        all: &Tensor,
        own: &Tensor,
    ) -> anyhow::Result<Box<dyn Gathering>> {
        no_grad(|| all.get(0).copy_(own));
        let Request::Unit(unit) = request else { anyhow::bail!("{request:?}") };
        self.0.lock().unwrap().push(format!("begin {unit}"));
        Ok(Box::new(Wait(Arc::clone(&self.0), format!("wait {unit}"))))
    }
}

impl Gathering for Wait {
    fn wait(self: Box<Self>) -> anyhow::Result<()> {
        self.0.lock().unwrap().push(self.1);
        Ok(())
    }
}

#[test]
fn the_next_unit_is_fetched_while_one_is_computed_with() {
    let like = (Kind::Float, Device::Cpu);
    let held = |id: usize| {
        let slot = Slot::new(300, 0, 1);
        let own = Tensor::arange(slot.width, like) + id as f64;
        let compute = Tensor::zeros([300], like);
        Held { id, own, compute, slots: vec![slot] }
    };
    let record = Arc::<Mutex<Vec<String>>>::default();
    let units: Vec<Vec<Held>> = (0..3).map(|id| vec![held(id)]).collect();
    let leaves: Vec<Tensor> = units.iter().map(|unit| unit[0].compute.shallow_clone()).collect();
    let division = Division::new(Arc::new(Recorded(Arc::clone(&record))), like, units);
    let took = || std::mem::take(&mut *record.lock().unwrap());
    division.release_all().unwrap();
    assert!(leaves.iter().all(|leaf| leaf.data_ptr().is_null()) && took().is_empty());

    division.acquire(ROOT, Some(1)).unwrap();
    assert_eq!(took(), ["begin 0", "wait 0", "begin 1"]);
    division.acquire(1, Some(2)).unwrap();
    assert_eq!(took(), ["wait 1", "begin 2"]);
    assert_eq!(leaves[1].double_value(&[299]), 300.0);
    assert!(leaves[2].data_ptr().is_null(), "not there before it is needed");
    // There already, and on its way.
    division.acquire(1, Some(2)).unwrap();
    assert!(took().is_empty());
    // What is on its way when all is given up would be old when it is needed.
    division.release_all().unwrap();
    assert_eq!(took(), ["wait 2"]);
    division.acquire(2, Some(3)).unwrap();
    assert_eq!(took(), ["begin 2", "wait 2"]);
}
