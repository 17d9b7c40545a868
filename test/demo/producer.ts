/**
 * A producer process: publishes its half of the records, as far as the demo allows, with several hundred in flight, and
 * reports the confirms. It ignores lost connections: the client sends unanswered publishes again.
 *
 * Arguments: url, number of this producer, count of all records.
 */
import { connect, SluiceError } from '@sluice/client'
import { firstRecord, Flights, readFlights, type FlightMessage } from './flights.js'
import { leave, standBy, tell } from './part.js'
import type { Grant, ProducerReport, Refusal } from './reports.js'

const IN_FLIGHT_MAX = 400

const [url, producerText, countText] = process.argv.slice(2)
const producer = Number(producerText)
const count = Number(countText)

standBy()

const flights = (await readFlights(count)).slice(
  firstRecord(producer, count),
  firstRecord(producer + 1, count),
)
const sluice = await connect(url, { name: `producer ${producer + 1}`, connectTimeout: '30s' })

let allowed = 0
let published = 0
let confirmed = 0
const offsets = flights.map(() => -1)
const refusals: Refusal[] = []
let isReporting = false
let wake = (): void => {}

process.on('message', (grant: Grant) => {
  allowed = grant.allowed
  wake()
})
sluice.on('disconnected', () => {
  void tell({ kind: 'cut', unanswered: unanswered() } satisfies ProducerReport)
})
await tell({ kind: 'ready' } satisfies ProducerReport)

for (const [index, flight] of flights.entries()) {
  while (!mayPublish(index)) await woken()
  publish(index, { producer, index, flight })
}
while (!isDone()) await woken()
await tell({ kind: 'done', offsets, refusals } satisfies ProducerReport)
await sluice.close()
leave()

function publish(index: number, body: FlightMessage): void {
  published++
  report()
  sluice.publish(Flights, body).then(
    ({ offset }) => {
      offsets[index] = offset
      confirmed++
      report()
      wake()
    },
    (error: unknown) => {
      const code = error instanceof SluiceError ? error.code : 'INTERNAL'
      refusals.push({ index, code, message: String(error) })
      wake()
    },
  )
}

// One report holds all publishes and confirms of one turn of the event loop.
function report(): void {
  if (isReporting) return
  isReporting = true
  setImmediate(() => {
    isReporting = false
    void tell({ kind: 'progress', published, confirmed } satisfies ProducerReport)
    wake()
  })
}

function mayPublish(index: number): boolean {
  return index < allowed && unanswered() < IN_FLIGHT_MAX
}

/** Whether all records are answered and reported. */
function isDone(): boolean {
  return unanswered() === 0 && !isReporting
}

function unanswered(): number {
  return published - confirmed - refusals.length
}

function woken(): Promise<void> {
  return new Promise((resolve) => {
    wake = resolve
  })
}
