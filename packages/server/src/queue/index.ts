/** The queue core: pure, synchronous, no clock, no chance, no I/O. */
export * from './chunk.js'
export * from './facts.js'
export * from './heap.js'
export * from './line.js'
export * from './pages.js'
export * from './queue.js'
export * from './subscription.js'
