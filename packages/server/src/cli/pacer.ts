/** Send times at a fixed rate, for load that does not wait for its answers. */
import { Worker as Thread } from 'node:worker_threads'

/** Milliseconds of the system's monotonic clock, which all processes share. */
export function nowMs(): number {
  const [seconds, nanos] = process.hrtime()
  return seconds * 1000 + nanos / 1e6
}

/**
 * Calls `each` with the send times, `rate` times per second from now on, by the clock of `nowMs`. Returns a function that
 * ends the calls. A thread waits for each time, because timers of the event loop are late under load.
 */
export function pace(rate: number, each: (dueMs: number) => void): () => void {
  const pacer = new Thread(PACER, { eval: true, workerData: { rate } })
  pacer.on('message', (dueMs: readonly number[]) => {
    for (const at of dueMs) each(at)
  })
  return () => void pacer.terminate()
}

const PACER = `
const { parentPort, workerData } = require('node:worker_threads')
const sleeper = new Int32Array(new SharedArrayBuffer(4))
const now = () => { const [s, n] = process.hrtime(); return s * 1000 + n / 1e6 }
const begun = now()
const interval = 1000 / workerData.rate
let sent = 0
for (;;) {
  const due = begun + sent * interval
  const wait = due - now()
  if (wait > 0) { Atomics.wait(sleeper, 0, 0, wait); continue }
  const times = []
  const until = now()
  for (let at = due; at <= until; at = begun + ++sent * interval) times.push(at)
  parentPort.postMessage(times)
}
`
