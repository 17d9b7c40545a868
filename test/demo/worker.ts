/**
 * A worker process: handles eight messages at a time and reports each call of its handler.
 *
 * The report is the effect of the work, so it goes first and the acknowledgement after it. Whatever was acknowledged
 * was therefore reported, also by a worker that was killed; what was reported and not acknowledged comes again and is
 * counted once. It does nothing about a lost connection: the client dials and subscribes again.
 *
 * Arguments: url, name of this worker.
 */
import { connect } from '@sluice/client'
import { Flights } from './flights.js'
import { leave, standBy, tell, type Stop } from './part.js'
import type { Handled, Hold, WorkerReport } from './reports.js'

const CONCURRENCY = 8
/** Held ready behind the handlers: an acknowledgement makes room only once it is on disk, and that takes its time. */
const PREFETCH = 256

const [url, name] = process.argv.slice(2)

standBy()

const sluice = await connect(url, { name: name!, connectTimeout: '30s' })
let connection = 1
sluice.on('connected', () => connection++)
sluice.on('handlerError', ({ error }) => console.error(name, 'handler failed', error))

const worker = sluice.consume(
  Flights,
  { concurrency: CONCURRENCY, prefetch: PREFETCH },
  ({ body, offset, redelivered }) => {
    const { producer, index, flight } = body
    const { origin, delay } = flight
    return report({ connection, producer, index, offset, redelivered, origin, delay })
  },
)
worker.closed.catch((error: unknown) => {
  console.error(name, 'ended', error)
  process.exit(1)
})

let isHeld = false
process.on('message', (order: Stop | Hold) => {
  if ('stop' in order) void sluice.close().then(leave)
  else isHeld = true
})
await tell({ kind: 'ready' } satisfies WorkerReport)

let records: Handled[] = []
let sent: Promise<void> | undefined

// What is handled in one turn of the event loop travels in one report.
function report(record: Handled): Promise<void> {
  records.push(record)
  sent ??= new Promise((resolve, reject) => {
    setImmediate(() => {
      const report: WorkerReport = { kind: 'handled', records, isHeld }
      records = []
      sent = undefined
      // A handler that is held does not return, so its message stays leased until this process is gone.
      tell(report).then(report.isHeld ? undefined : resolve, reject)
    })
  })
  return sent
}
