// What is compiled (native.py): all of it as one file, in half the time that one after another takes.
#include "attention.cpp"
#include "branches.cpp"
#include "gradient.cpp"
#include "pointwise.cpp"
