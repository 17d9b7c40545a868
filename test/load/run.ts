/**
 * The load harness: runs scenarios in turn on the broker, on the bare loop that is the machine's floor, and on the
 * installed peers.
 *
 * node test/dist/load/run.js [--scenarios FILE] [--only NAME]… [--driver NAME]… [--rounds 3] [--out DIRECTORY]
 */
import { execFileSync } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { cpus, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import type { Driver } from './driver.js'
import { DRIVERS } from './drivers/index.js'
import { measure } from './measure.js'
import { describe, isSound, markdownOf, svgOf, tableOf, textOf, type Peer, type Results } from './report.js'
import { readScenarios, type Scenario } from './scenario.js'

const ROUNDS_MAX = 100

interface Plan {
  readonly scenarios: readonly Scenario[]
  readonly drivers: readonly Driver[]
  readonly rounds: number
  readonly out: string | undefined
}

/** @throws Error that describes the wrong argument */
async function planOf(args: readonly string[]): Promise<Plan> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      scenarios: {
        type: 'string',
        default: fileURLToPath(new URL('../../load/scenarios.json', import.meta.url)),
      },
      only: { type: 'string', multiple: true },
      driver: { type: 'string', multiple: true },
      rounds: { type: 'string', default: '3' },
      out: { type: 'string' },
    },
  })
  const rounds = Number(values.rounds)
  if (!Number.isInteger(rounds) || rounds < 1 || rounds > ROUNDS_MAX)
    throw new Error(`--rounds is "${values.rounds}"; it is a whole number from 1 to ${ROUNDS_MAX}.`)
  return {
    scenarios: chosen(await readScenarios(values.scenarios), values.only, '--only'),
    drivers: chosen(DRIVERS, values.driver, '--driver'),
    rounds,
    out: values.out,
  }
}

function chosen<T extends { readonly name: string }>(
  all: readonly T[],
  names: readonly string[] | undefined,
  flag: string,
): readonly T[] {
  if (names === undefined) return all
  const unknown = names.find((name) => !all.some((each) => each.name === name))
  if (unknown !== undefined)
    throw new Error(`${flag} names "${unknown}"; available are: ${all.map(({ name }) => name).join(', ')}.`)
  return all.filter(({ name }) => names.includes(name))
}

async function installed(drivers: readonly Driver[]): Promise<{ peers: Peer[]; missing: string[] }> {
  const peers: Peer[] = []
  const missing: string[] = []
  for (const driver of drivers) {
    const version = await driver.version()
    if (version === undefined) missing.push(driver.name)
    else peers.push({ name: driver.name, version, settings: driver.settings })
  }
  return { peers, missing }
}

function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

async function run({ scenarios, drivers, rounds, out }: Plan, signal: AbortSignal): Promise<Results> {
  const { peers, missing } = await installed(drivers)
  for (const { name, version, settings } of peers) say(`${name}: ${version}; ${settings}`)
  for (const { name, needs } of drivers)
    if (missing.includes(name))
      say(`${name}: not installed, skipped${needs === undefined ? '' : `; it needs ${needs}`}`)
  const present = drivers.filter(({ name }) => !missing.includes(name))
  const runs: Results['runs'][number][] = []
  const results: Results = {
    atMs: Date.now(),
    commit: commit(),
    machine: {
      cpu: cpus()[0]!.model,
      cores: cpus().length,
      memoryGib: Math.round(totalmem() / 2 ** 30),
      kernel: release(),
      node: process.versions.node,
    },
    rounds,
    peers,
    missing,
    scenarios,
    runs,
  }
  for (const scenario of scenarios) {
    const able = present.filter(
      (driver) =>
        driver.can(scenario) &&
        (!scenario.replies || driver.hasReplies === true) &&
        (scenario.drivers.length === 0 || scenario.drivers.includes(driver.name)),
    )
    say(`\n${scenario.name}: ${describe(scenario)}`)
    for (let round = 0; round < rounds; round++) {
      for (const driver of able) {
        try {
          const outcome = await measure(driver, scenario, signal)
          runs.push({ scenario: scenario.name, driver: driver.name, round, outcome })
          if (outcome.failure !== undefined)
            say(`  ${driver.name}: ${outcome.failed} failed: ${outcome.failure}`)
        } catch (error) {
          signal.throwIfAborted()
          // If one driver fails, the others still run.
          say(`  ${driver.name}: ${(error as Error).message}`)
          if (driver.name === 'sluice') process.exitCode = 1
        }
      }
    }
    say(textOf(tableOf(results, scenario)))
  }
  if (out !== undefined) {
    await mkdir(out, { recursive: true })
    await writeFile(join(out, 'results.json'), `${JSON.stringify(results, undefined, 1)}\n`)
    await writeFile(join(out, 'results.md'), markdownOf(results))
    await writeFile(join(out, 'results.svg'), svgOf(results))
    say(`\nWritten to ${out}: results.json, results.md, results.svg`)
  }
  return results
}

function commit(): string {
  try {
    const git = (...args: string[]): string =>
      execFileSync('git', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
    return git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain') === '' ? '' : ' with changes')
  } catch {
    return 'unknown'
  }
}

const early = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.once(signal, () => {
    process.exitCode = signal === 'SIGINT' ? 130 : 143
    early.abort(new Error(`ended by ${signal}`))
  })

try {
  const results = await run(await planOf(process.argv.slice(2)), early.signal)
  if (!isSound(results)) {
    say('A confirmed message was not consumed, or was damaged.')
    process.exitCode = 1
  }
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`)
  process.exitCode ??= 2
}
