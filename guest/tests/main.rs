//! The guest's side over an in-memory Windows: what each test sets is what a real one would show.

mod checks;
mod docs;
mod finalize;
mod report;
mod service;
