/**
 * The demo: sends 20,000 flight records through a broker that is killed while it runs, and prints the result.
 *
 * Option: `--records <n>` sends only the first n records. Exit code: 0 for success, 1 for failure, 2 for wrong options.
 * The demo leaves no processes behind. It removes its files, except after a failure: then it keeps the directory with
 * the logs and prints its path.
 */
import { parseArgs } from 'node:util'
import { Delays } from './delays.js'
import { FLIGHTS_MAX, readFlights } from './flights.js'
import type { Tally } from './ledger.js'
import { grouped, Progress } from './progress.js'
import { Scenario, type Outcome } from './scenario.js'
import { perform } from './stage.js'

const RUN_MS_MAX = 120_000
// With fewer records the run would end before the first kill.
const RECORDS_MIN = 2_000
/** An airport is ranked if it has at least this share of the flights. */
const RANKED_SHARE = 0.005

process.exitCode = await main()

async function main(): Promise<number> {
  const count = recordsWanted()
  if (count === undefined) return 2
  const progress = new Progress(process.stderr, count)
  return perform('demo', RUN_MS_MAX, (stage) => {
    const scenario = new Scenario({ ...stage, count, progress })
    return {
      async play() {
        const truth = new Delays()
        for (const { origin, delay } of await readFlights(count)) truth.add(origin, delay)
        const outcome = await scenario.play()
        progress.clear()
        return judge(outcome, count, truth)
      },
      whereabouts() {
        const { published, confirmed, acked } = scenario.counts
        return `${published} published, ${confirmed} confirmed, ${acked} acked`
      },
      clear: () => progress.clear(),
      close: () => scenario.close(),
    }
  })
}

/** Prints the result and returns the problems that it shows. */
function judge(
  { ledger, published, queue, refusals, seconds, awaySeconds }: Outcome,
  count: number,
  truth: Delays,
): string[] {
  const tally = ledger.close(published, queue)
  const problems = ledger.problems(tally, queue, truth)
  for (const code of new Set(refusals.map((refusal) => refusal.code))) {
    const same = refusals.filter((refusal) => refusal.code === code)
    problems.push(`${same.length} publishes were refused with ${code}, such as: ${same[0]!.message}`)
  }
  console.log(table(tally))
  console.log(
    `\n${grouped(Math.round(count / seconds))} messages per second overall (${seconds.toFixed(1)} s, ${awaySeconds.toFixed(1)} s of them without a broker)`,
  )
  console.log('\nWorst mean delay by origin, as the workers summed it:')
  for (const { origin, flights, mean } of ledger.delays.worst(3, Math.ceil(count * RANKED_SHARE))) {
    console.log(`${origin}  ${mean.toFixed(1).padStart(5)} min  of ${grouped(flights)} flights`)
  }
  return problems
}

function table(tally: Tally): string {
  const rows: readonly (readonly [string, number, string])[] = [
    ['published', tally.published, 'by the producers'],
    ['confirmed', tally.confirmed, 'durable, according to the broker'],
    ['delivered', tally.delivered, 'calls of handlers'],
    ['redelivered', tally.redelivered, 'of these, marked: may have been delivered before'],
    ['acked', tally.acked, 'on record at the broker'],
    ['lost', tally.lost, 'confirmed and never acknowledged'],
    ['out of order', tally.outOfOrder, 'first deliveries of a producer on a connection'],
  ]
  return rows
    .map(([name, count, what]) => `${name.padEnd(12)}  ${grouped(count).padStart(7)}  ${what}`)
    .join('\n')
}

function recordsWanted(): number | undefined {
  try {
    const { values } = parseArgs({ options: { records: { type: 'string', default: String(FLIGHTS_MAX) } } })
    const count = Number(values.records)
    if (Number.isInteger(count) && count >= RECORDS_MIN && count <= FLIGHTS_MAX) return count
    console.error(
      `--records is ${values.records}; it must be a whole number from ${RECORDS_MIN} to ${FLIGHTS_MAX}.`,
    )
  } catch (error) {
    console.error(
      `${(error as Error).message}. The only option is --records N, from ${RECORDS_MIN} to ${FLIGHTS_MAX}.`,
    )
  }
  return undefined
}
