/**
 * The position of a page that has not been written. Chunks, queues and producers have it as `pagePosition` at first.
 *
 * It is not an integer, because V8 stores integers in another way than positions, which can exceed 2^31. When a restart
 * reads the first position, V8 would convert 100,000 queues, 2 µs each.
 */
export const NOT_WRITTEN = -Infinity
