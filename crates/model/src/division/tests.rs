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
