"""Less time and less memory for the same film.

`options` says what is asked for and puts it on a pipeline, `fit` says beforehand what each stage needs and what will be
done about it. `cache` leaves out most of a pass while little changes; `decoding` goes from latents to pixels in chunks,
and in tiles when memory runs out, and `counting` says beforehand what that takes; `staged` brings the parts of an open
checkpoint into memory one after another and keeps the states of texts on disk; `guiding` leaves out guidance's pass at
some times; `quantizing` holds a transformer in fewer bits; `parallel` spreads one film over several devices,
`parallel_open` one of an open checkpoint; `tiny` reads tiny autoencoders for previews.
"""
