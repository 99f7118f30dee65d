//! Custom nodes: gradients, errors, panics, lifetimes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::testing::{max_error, random};

fn cpu(shape: &[i64], seed: u64) -> Tensor {
    random(shape, seed, Kind::Float, Device::Cpu)
}

/// `a * b` as a custom node.
fn product(a: &Tensor, b: &Tensor) -> Tensor {
    let out = tch::no_grad(|| a * b);
    let (saved_a, saved_b) = (SavedTensor::new(a).unwrap(), SavedTensor::new(b).unwrap());
    let results = custom("product", &[a, b], &[out], move |grads| {
        let Some(Some(grad)) = grads.first() else { bail!("no gradient") };
        Ok(vec![Some(grad * saved_b.get()?), Some(grad * saved_a.get()?)])
    });
    results.unwrap().remove(0)
}

/// A node with one input whose backward is `f`.
fn node<F>(input: &Tensor, f: F) -> Tensor
where
    F: FnMut(&[Option<Tensor>]) -> anyhow::Result<Gradients> + Send + 'static,
{
    let out = tch::no_grad(|| input * 2.0);
    custom("node", &[input], &[out], f).unwrap().remove(0)
}

#[test]
fn gradients_equal_the_built_in_ones() {
    let (a, b) = (cpu(&[3, 4], 1), cpu(&[3, 4], 2));
    let ours = product(&(&a * 2.0), &b.sin()).sum(Kind::Float);
    let theirs = ((&a * 2.0) * b.sin()).sum(Kind::Float);
    assert!(ours.equal(&theirs));
    let grads = |loss: &Tensor| grad(&[loss], &[None], &[&a, &b], false).unwrap();
    for (x, y) in grads(&ours).iter().zip(&grads(&theirs)) {
        assert!(x.as_ref().unwrap().equal(y.as_ref().unwrap()));
    }
    backward(&product(&a, &b).sum(Kind::Float)).unwrap();
    assert!(a.grad().equal(&b.detach()));
}

#[test]
fn without_gradients_the_outputs_come_back_and_the_closure_goes() {
    let drops = Arc::new(AtomicUsize::new(0));
    let a = cpu(&[2], 1);
    let frozen = a.detach();
    let make = |input: &Tensor| {
        let counter = DropCounter(drops.clone());
        node(input, move |_| {
            let _keep = &counter;
            Ok(vec![None])
        })
    };
    let out = make(&frozen);
    assert!(!out.requires_grad() && out.equal(&(&frozen * 2.0)));
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    let out = {
        let _guard = GradMode::set(false);
        make(&a)
    };
    assert!(!out.requires_grad());
    assert_eq!(drops.load(Ordering::SeqCst), 2);
}

struct DropCounter(Arc<AtomicUsize>);

impl Drop for DropCounter {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_closure_goes_with_the_graph() {
    let drops = Arc::new(AtomicUsize::new(0));
    let a = cpu(&[2], 1);
    let make = || {
        let counter = DropCounter(drops.clone());
        node(&a, move |grads| {
            let _keep = &counter;
            Ok(vec![grads[0].as_ref().map(|g| g * 2.0)])
        })
    };
    // With the last tensor that depends on it, without any backward pass.
    let out = make();
    let view = out.view([2, 1]);
    drop(out);
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    drop(view);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    // With a backward pass that releases the graph, though the output lives on.
    let out = make();
    let loss = out.sum(Kind::Float);
    backward_from(&[&loss], &[None], true).unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    backward(&loss).unwrap();
    assert_eq!(drops.load(Ordering::SeqCst), 2);
    assert_eq!(Vec::<f32>::try_from(a.grad()).unwrap(), [4.0, 4.0]);
    let error = backward(&loss).unwrap_err().to_string();
    assert!(error.contains("backward through the graph a second time"), "{error}");
}

#[test]
fn a_saved_output_makes_no_cycle() {
    let drops = Arc::new(AtomicUsize::new(0));
    let a = cpu(&[3], 1);
    let counter = DropCounter(drops.clone());
    let out = tch::no_grad(|| a.exp());
    let saved = SavedTensor::new(&out).unwrap();
    let out = custom("exp", &[&a], &[out], move |grads| {
        let _keep = &counter;
        Ok(vec![grads[0].as_ref().map(|g| saved.get().map(|s| g * s)).transpose()?])
    });
    let out = out.unwrap().remove(0);
    let got = grad(&[&out.sum(Kind::Float)], &[None], &[&a], true).unwrap().remove(0).unwrap();
    assert!(got.equal(&a.detach().exp()));
    drop(out);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn the_memory_of_saved_tensors_is_freed() {
    // 300 nodes that each save 4 MB and return as much: leaking them would need 2.4 GB.
    let a = cpu(&[1], 1);
    let before = resident_bytes();
    for _ in 0..300 {
        let big = &a * Tensor::ones([1 << 20], (Kind::Float, Device::Cpu));
        let out = product(&big, &big);
        backward(&out.sum(Kind::Float)).unwrap();
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 600 << 20, "grew by {} MB", grown >> 20);
}

fn resident_bytes() -> usize {
    let text = fs_err::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn an_error_in_a_closure_is_returned() {
    let a = cpu(&[2], 1);
    let out = node(&a, |_| Err(anyhow::anyhow!("the file is gone").context("reading weights")));
    let error = backward(&out.sum(Kind::Float)).unwrap_err();
    assert!(matches!(error, TorchError::Closure { op: "backward", .. }));
    assert_eq!(error.to_string(), "backward: reading weights: the file is gone");
    assert!(!a.grad().defined());
    let out = node(&a, |_| bail!("no"));
    let error = grad(&[&out.sum(Kind::Float)], &[None], &[&a], false).unwrap_err();
    assert_eq!(error.to_string(), "grad: no");
}

#[test]
fn a_panic_in_a_closure_is_returned() {
    let a = cpu(&[2], 1);
    let out = node(&a, |_| panic!("index {} is out of range", 7));
    let error = backward(&out.sum(Kind::Float)).unwrap_err();
    assert!(matches!(error, TorchError::Closure { .. }));
    assert_eq!(error.to_string(), "backward: panic: index 7 is out of range");
    // A tch operation that fails panics too; its C++ backtrace is cut off.
    let out = node(&a, |grads| {
        let grad = grads[0].as_ref().unwrap();
        Ok(vec![Some(grad.matmul(&Tensor::zeros([3, 3], (Kind::Float, Device::Cpu))))])
    });
    let error = backward(&out.sum(Kind::Float)).unwrap_err().to_string();
    let want = "backward: panic: mat1 and mat2 shapes cannot be multiplied (1x2 and 3x3)";
    assert_eq!(error, want);
    // Autograd still works afterwards, on this thread and in this mode.
    assert!(grad_enabled());
    let (b, c) = (cpu(&[2], 2), cpu(&[2], 3));
    backward(&product(&b, &c).sum(Kind::Float)).unwrap();
    assert!(b.grad().equal(&c.detach()));
}

#[test]
fn a_panic_while_dropping_a_closure_stays_in_rust() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "dropped");
        }
    }
    let a = cpu(&[2], 1);
    let bomb = Bomb;
    let out = node(&a, move |_| {
        let _keep = &bomb;
        Ok(vec![None])
    });
    drop(out);
}

#[test]
fn wrong_gradients_are_refused() {
    let a = cpu(&[2], 1);
    let fail = |f: fn() -> Gradients| {
        let out = node(&a, move |_| Ok(f()));
        backward(&out.sum(Kind::Float)).unwrap_err().to_string()
    };
    assert_eq!(fail(Vec::new), "backward: backward returned 0 gradients for 1 inputs");
    let message = fail(|| vec![Some(Tensor::zeros([5], (Kind::Float, Device::Cpu)))]);
    assert!(message.contains("invalid gradient at index 0"), "{message}");
}

#[test]
fn an_unused_output_has_no_gradient() {
    let a = cpu(&[2], 1);
    let outputs = tch::no_grad(|| vec![&a * 1.0, a.to_kind(Kind::Int64), &a * 3.0]);
    let results = custom("three", &[&a], &outputs, |grads| {
        assert!(grads[0].is_none() && grads[1].is_none());
        Ok(vec![grads[2].as_ref().map(|g| g * 3.0)])
    })
    .unwrap();
    assert!(!results[1].requires_grad(), "an integer output is not differentiable");
    backward(&results[2].sum(Kind::Float)).unwrap();
    assert_eq!(Vec::<f32>::try_from(a.grad()).unwrap(), [3.0, 3.0]);
}

#[test]
fn a_tensor_changed_in_place_is_refused() {
    let (a, b) = (cpu(&[2], 1), cpu(&[2], 2));
    let out = product(&a, &b);
    let _ = tch::no_grad(|| b.shallow_clone().fill_(0.0));
    let error = backward(&out.sum(Kind::Float)).unwrap_err().to_string();
    let want = "backward: saved tensor: a tensor of shape [2] needed by backward was changed in \
                place (version 1, saved at 0)";
    assert_eq!(error, want);
}

#[test]
fn outputs_with_a_history_are_refused() {
    let a = cpu(&[2], 1);
    let error = custom("mine", &[&a], &[&a * 2.0], |_| Ok(vec![None])).unwrap_err().to_string();
    let want = "mine: output 0 requires a gradient already; compute the outputs without autograd";
    assert_eq!(error, want);
}

#[test]
fn a_second_derivative_is_refused() {
    let a = cpu(&[2], 1);
    let out = product(&a, &a).sum(Kind::Float);
    let error = Tensor::f_run_backward(&[&out], &[&a], true, true).unwrap_err().to_string();
    assert!(error.contains("product is differentiable once only"), "{error}");
}

#[test]
fn libtorch_errors_are_returned_without_a_backtrace() {
    let a = cpu(&[2], 1);
    let error = backward(&a.detach().sum(Kind::Float)).unwrap_err();
    assert!(matches!(error, TorchError::Libtorch { .. }));
    let text = error.to_string();
    assert!(text.contains("does not require grad") && !text.contains("frame #"), "{text}");
    let error = backward(&(&a * 2.0)).unwrap_err().to_string();
    assert!(error.contains("grad can be implicitly created only for scalar outputs"), "{error}");
    let error = backward_from(&[&a], &[], false).unwrap_err().to_string();
    assert_eq!(error, "backward: 1 tensors but 0 gradients");
}

#[test]
fn an_input_that_does_not_matter_has_no_gradient() {
    let (a, b) = (cpu(&[2], 1), cpu(&[2], 2));
    let weight = cpu(&[2], 3).detach();
    let grads = grad(&[&(&a * 3.0)], &[Some(&weight)], &[&a, &b], false).unwrap();
    assert_eq!(max_error(grads[0].as_ref().unwrap(), &(weight * 3.0)), 0.0);
    assert!(grads[1].is_none() && !a.grad().defined());
}

#[test]
fn grad_mode_comes_back_after_a_panic() {
    let result = catch_unwind(|| {
        let _guard = GradMode::set(false);
        assert!(grad_enabled(), "off");
    });
    assert!(result.is_err() && grad_enabled());
}

#[test]
fn cuda_closures_run_on_autograds_thread() {
    let Some(device) = crate::device::test_cuda("custom nodes") else { return };
    let a = random(&[4], 1, Kind::Float, device);
    let here = std::thread::current().id();
    let out = node(&a, move |grads| {
        assert_ne!(std::thread::current().id(), here);
        Ok(vec![grads[0].as_ref().map(|g| g * 2.0)])
    });
    backward(&out.sum(Kind::Float)).unwrap();
    assert_eq!(f64::try_from(a.grad().sum(Kind::Float)).unwrap(), 8.0);
    let out = node(&a, |_| panic!("on another thread"));
    let error = backward(&out.sum(Kind::Float)).unwrap_err().to_string();
    assert_eq!(error, "backward: panic: on another thread");
}

#[test]
fn a_hook_runs_when_its_leaf_has_all_of_its_gradient() {
    let leaf = |value: f64| Tensor::from_slice(&[value]).set_requires_grad(true);
    let (early, late) = (leaf(2.0), leaf(3.0));
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hook = |name: &'static str, of: &Tensor, other: &Tensor| {
        let (of, other) = (of.shallow_clone(), other.shallow_clone());
        let (seen, handle) = (Arc::clone(&seen), of.shallow_clone());
        let f = move || {
            let grad = f64::try_from(of.grad())?;
            seen.lock().unwrap().push((name, grad, other.grad().defined()));
            Ok(())
        };
        on_grad(&handle, f).unwrap()
    };
    let hooks = [hook("early", &early, &late), hook("late", &late, &early)];
    // Twice in the graph, so that two gradients are added up before the hook runs.
    let once = || backward(&((&early * &late) * &late).sum(Kind::Float)).unwrap();
    once();
    let first: Vec<_> = seen.lock().unwrap().drain(..).collect();
    assert_eq!(first.len(), 2);
    assert!(first.contains(&("late", 12.0, true)) || first.contains(&("late", 12.0, false)));
    assert_eq!(first.iter().filter(|(_, _, other)| *other).count(), 1, "one was first: {first:?}");
    once();
    assert!(seen.lock().unwrap().drain(..).any(|(name, grad, _)| (name, grad) == ("early", 18.0)));
    drop(hooks);
    once();
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn a_hook_that_fails_ends_the_backward_pass_with_its_words() {
    let leaf = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    let failing = on_grad(&leaf, || anyhow::bail!("no more")).unwrap();
    let error = backward(&leaf.sum(Kind::Float)).unwrap_err();
    assert!(
        matches!(&error, TorchError::Closure { message, .. } if message == "no more"),
        "{error:?}"
    );
    drop(failing);
    let panicking = on_grad(&leaf, || panic!("at once")).unwrap();
    let error = backward(&leaf.sum(Kind::Float)).unwrap_err();
    assert!(error.to_string().ends_with("panic: at once"), "{error}");
    drop(panicking);
    backward(&leaf.sum(Kind::Float)).unwrap();
    assert!(on_grad(&(&leaf + 1.0), || Ok(())).is_err());
}
