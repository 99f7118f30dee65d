//! What a worker has for a client, until the client takes it: all that came since is taken at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use model::generate::PromptToken;

use super::queue::{End, Failure, Token};

/// What is new of one choice.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// The prompt, told before its first token.
    pub(crate) prompt: Option<Vec<PromptToken>>,
    /// Of a stream, the text and, where log-probabilities are told, the tokens since the client took the last.
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    /// Behind which nothing comes.
    pub(crate) end: Option<Result<End, Failure>>,
}

#[derive(Debug, Default)]
struct State {
    /// One a choice.
    news: Vec<News>,
    /// The choices that have some, in the order in which it came.
    changed: Vec<usize>,
    /// Since when it lies there.
    since: Option<Instant>,
    /// Whether it is to be taken at once: an answer has ended.
    urgent: bool,
    /// Choices that a worker still has something to say of.
    open: usize,
    left: bool,
    waker: Option<Waker>,
    /// Whether the client wants to be woken by what is urgent alone.
    patient: bool,
}

/// The client's side. Dropped, it tells the workers that the client has left.
#[derive(Debug)]
pub(crate) struct Mailbox(Arc<Mutex<State>>);

/// The worker's side of one choice.
#[derive(Debug)]
pub(crate) struct Sender {
    choice: usize,
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mailbox for the choices of a request, and where each comes from.
pub(crate) fn mailbox(choices: usize) -> (Mailbox, Vec<Sender>) {
    let news = (0..choices).map(|_| News::default()).collect();
    let state = Arc::new(Mutex::new(State { news, open: choices, ..State::default() }));
    let sender = |choice| Sender { choice, state: Arc::clone(&state) };
    let senders = (0..choices).map(sender).collect();
    (Mailbox(state), senders)
}

impl Mailbox {
    /// Takes what is new, by choice; `None` where no worker has anything to say any more. With `patient` there is to be more
    /// than a token: an end.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        patient: bool,
    ) -> Poll<Option<Vec<(usize, News)>>> {
        let mut state = lock(&self.0);
        if state.open == 0 && state.changed.is_empty() {
            return Poll::Ready(None);
        }
        if state.changed.is_empty() || (patient && !state.urgent) {
            state.patient = patient;
            if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        (state.since, state.urgent) = (None, false);
        let changed = std::mem::take(&mut state.changed);
        let take = |choice: usize| (choice, std::mem::take(&mut state.news[choice]));
        Poll::Ready(Some(changed.into_iter().map(take).collect()))
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        lock(&self.0).left = true;
    }
}

impl Sender {
    /// Whether the client has left.
    pub(crate) fn has_left(&self) -> bool {
        lock(&self.state).left
    }

    /// Whether something has been lying here for so long.
    pub(crate) fn waits_for(&self, now: Instant, patience: Duration) -> bool {
        lock(&self.state).since.is_some_and(|since| now.duration_since(since) >= patience)
    }

    fn put(&self, urgent: bool, put: impl FnOnce(&mut News)) {
        let mut state = lock(&self.state);
        if state.changed.is_empty() {
            state.since = Some(Instant::now());
        }
        if !state.changed.contains(&self.choice) {
            state.changed.push(self.choice);
        }
        put(&mut state.news[self.choice]);
        state.urgent |= urgent;
        let waker = if urgent || !state.patient { state.waker.take() } else { None };
        // Outside the lock, which the woken client wants.
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Tells the prompt.
    pub(crate) fn prompt(&self, tokens: Vec<PromptToken>) {
        self.put(false, |news| news.prompt = Some(tokens));
    }

    /// Adds text, and a token where it is told by itself.
    pub(crate) fn token(&self, text: &str, token: Option<Token>) {
        self.put(false, |news| {
            news.text.push_str(text);
            news.tokens.extend(token);
        });
    }

    /// Says the last of this choice.
    pub(crate) fn end(self, end: Result<End, Failure>) {
        self.put(true, |news| news.end = Some(end));
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.open -= 1;
        let waker = if state.open == 0 { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A client, and how often it was woken.
    struct Client(Mailbox, Arc<Woken>);

    impl Client {
        fn new(choices: usize) -> (Self, Vec<Sender>) {
            let (mailbox, senders) = mailbox(choices);
            (Self(mailbox, Arc::default()), senders)
        }

        fn take(&mut self, patient: bool) -> Poll<Option<Vec<(usize, News)>>> {
            let waker = Waker::from(Arc::clone(&self.1));
            self.0.poll(&mut Context::from_waker(&waker), patient)
        }

        #[track_caller]
        fn taken(&mut self, patient: bool) -> Vec<(usize, News)> {
            match self.take(patient) {
                Poll::Ready(Some(news)) => news,
                other => panic!("{other:?}"),
            }
        }

        fn woken(&self) -> usize {
            self.1.0.load(Ordering::SeqCst)
        }
    }

    fn token(id: i64) -> Token {
        Token { id, logprob: -1.0, top: Vec::new() }
    }

    #[test]
    fn what_came_since_is_taken_together_and_by_choice() {
        let (mut client, senders) = Client::new(2);
        assert!(client.take(false).is_pending());
        senders[1].token("b", Some(token(1)));
        senders[0].token("a", None);
        senders[1].token("c", Some(token(2)));
        assert_eq!(client.woken(), 1, "woken once for all three");
        let news = client.taken(false);
        assert_eq!(news.iter().map(|(choice, _)| *choice).collect::<Vec<_>>(), [1, 0]);
        assert_eq!((&*news[0].1.text, &*news[1].1.text), ("bc", "a"));
        assert_eq!(news[0].1.tokens.iter().map(|token| token.id).collect::<Vec<_>>(), [1, 2]);
        assert!(news[1].1.tokens.is_empty());
        assert!(client.take(false).is_pending());
    }

    #[test]
    fn a_patient_client_is_woken_by_an_end_alone() {
        let (mut client, mut senders) = Client::new(1);
        assert!(client.take(true).is_pending());
        senders[0].token("a", None);
        assert!(client.take(true).is_pending());
        assert_eq!(client.woken(), 0);
        senders.remove(0).end(Err(Failure::Timeout));
        assert_eq!(client.woken(), 1);
        let news = client.taken(true);
        assert_eq!(news[0].1.text, "a");
        assert!(matches!(news[0].1.end, Some(Err(Failure::Timeout))));
        assert!(matches!(client.take(true), Poll::Ready(None)), "no worker is left");
    }

    #[test]
    fn a_worker_that_goes_without_a_word_ends_it() {
        let (mut client, senders) = Client::new(2);
        assert!(client.take(true).is_pending());
        drop(senders);
        assert_eq!(client.woken(), 1);
        assert!(matches!(client.take(true), Poll::Ready(None)));
    }

    #[test]
    fn a_worker_sees_a_client_that_left_or_does_not_read() {
        let (mut client, senders) = Client::new(1);
        let sender = &senders[0];
        let later = Instant::now() + Duration::from_mins(1);
        assert!(!sender.waits_for(later, Duration::from_secs(1)), "nothing lies there");
        sender.token("a", None);
        assert!(sender.waits_for(later, Duration::from_secs(1)));
        assert!(!sender.waits_for(Instant::now(), Duration::from_mins(2)));
        client.taken(false);
        assert!(!sender.waits_for(later, Duration::from_secs(1)), "it was taken");
        assert!(!sender.has_left());
        drop(client);
        assert!(sender.has_left());
    }
}
