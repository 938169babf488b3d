mod client;
mod mirror;
