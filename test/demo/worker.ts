/**
 * A worker process: handles eight messages at a time and reports each call of its handler.
 *
 * The report is the effect of the work, so the worker sends it before the acknowledgement. Therefore even a worker that
 * was killed has reported every record that it acknowledged; a record that was reported but not acknowledged is
 * delivered again and counted once. The worker ignores lost connections: the client reconnects and subscribes again.
 *
 * Arguments: url, name of this worker.
 */
import { connect } from '@sluice/client'
import { Flights } from './flights.js'
import { leave, standBy, tell, type Stop } from './part.js'
import type { Handled, Hold, WorkerReport } from './reports.js'

const CONCURRENCY = 8
/** Number of messages that the broker may deliver in advance. A message counts until its acknowledgement is durable. */
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

// One report contains all records that were handled in one turn of the event loop.
function report(record: Handled): Promise<void> {
  records.push(record)
  sent ??= new Promise((resolve, reject) => {
    setImmediate(() => {
      const report: WorkerReport = { kind: 'handled', records, isHeld }
      records = []
      sent = undefined
      // A held handler does not return, so its message stays leased until this process ends.
      tell(report).then(report.isHeld ? undefined : resolve, reject)
    })
  })
  return sent
}
