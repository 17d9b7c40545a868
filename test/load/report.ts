/** Renders the results of a run as a table, a page of Markdown and an SVG picture. */
import { median } from '../scale/measures.js'
import { whole } from '../scale/scenario.js'
import type { Outcome } from './measure.js'
import type { Scenario } from './scenario.js'

export interface Peer {
  readonly name: string
  readonly version: string
  readonly settings: string
}

export interface Machine {
  readonly cpu: string
  readonly cores: number
  readonly memoryGib: number
  readonly kernel: string
  readonly node: string
}

export interface Results {
  readonly atMs: number
  readonly commit: string
  readonly machine: Machine
  readonly rounds: number
  readonly peers: readonly Peer[]
  readonly missing: readonly string[]
  readonly scenarios: readonly Scenario[]
  readonly runs: readonly {
    readonly scenario: string
    readonly driver: string
    readonly round: number
    readonly outcome: Outcome
  }[]
}

/** The medians of one driver in one scenario. */
interface Line {
  readonly driver: string
  readonly rounds: number
  readonly figures: Figures
  readonly faults: string
}

type FigureName = 'publish' | 'consume' | 'p50' | 'p99' | 'max' | 'cpu' | 'memory'
type Figures = Readonly<Record<FigureName, number | undefined>>

const FIGURES: Readonly<
  Record<FigureName, readonly [title: string, of: (outcome: Outcome) => number | undefined]>
> = {
  publish: ['publish/s', ({ publish }) => publish],
  consume: ['consume/s', ({ consume }) => consume],
  p50: ['p50 ms', (outcome) => latencyOf(outcome, 'p50')],
  p99: ['p99 ms', (outcome) => latencyOf(outcome, 'p99')],
  max: ['max ms', (outcome) => latencyOf(outcome, 'max')],
  cpu: ['broker µs/msg', ({ brokerCpuUs }) => brokerCpuUs],
  memory: ['broker MiB', ({ brokerMib }) => brokerMib],
}

function latencyOf({ endToEnd, confirmLatency }: Outcome, of: 'p50' | 'p99' | 'max'): number | undefined {
  const latency = endToEnd ?? confirmLatency
  return latency && latency[of] / 1_000
}

export function linesOf(results: Results, scenario: Scenario): Line[] {
  const runs = results.runs.filter((run) => run.scenario === scenario.name)
  return [...new Set(runs.map(({ driver }) => driver))].map((driver) => {
    const outcomes = runs.filter((run) => run.driver === driver).map(({ outcome }) => outcome)
    const figures = Object.fromEntries(
      Object.entries(FIGURES).map(([name, [, of]]) => {
        const values = outcomes.flatMap((outcome) => of(outcome) ?? [])
        return [name, values.length === 0 ? undefined : median(values)]
      }),
    ) as unknown as Figures
    return { driver, rounds: outcomes.length, figures, faults: faultsOf(outcomes) }
  })
}

// Lists losses and damage, which no broker may cause, as well as duplicates and failures.
function faultsOf(outcomes: readonly Outcome[]): string {
  const total = (of: (outcome: Outcome) => number): number =>
    outcomes.reduce((sum, each) => sum + of(each), 0)
  const found = [
    [total(({ lost }) => lost), 'confirmed and not consumed'],
    [total(({ damaged }) => damaged), 'damaged'],
    [total(({ duplicates }) => duplicates), 'twice'],
    [total(({ failed }) => failed), 'failed'],
  ] as const
  return found
    .filter(([count]) => count > 0)
    .map(([count, what]) => `${whole(count)} ${what}`)
    .join(', ')
}

/** Whether no driver lost or damaged a confirmed message. */
export function isSound(results: Results): boolean {
  return results.runs.every(({ outcome }) => outcome.lost === 0 && outcome.damaged === 0)
}

function shown(name: FigureName, value: number | undefined): string {
  if (value === undefined) return '–'
  if (name === 'publish' || name === 'consume' || name === 'memory') return whole(value)
  return value.toFixed(value < 10 ? 2 : 1)
}

// The main figure of a scenario, by which drivers are compared; for latencies, less is better.
function mainOf({ kind, inFlight }: Scenario): FigureName {
  if (kind === 'latency') return 'p99'
  if (kind === 'publish') return inFlight === 1 ? 'p50' : 'publish'
  return 'consume'
}

/** The table as rows of strings; the first row has the titles. Shares are relative to the floor. */
export function tableOf(results: Results, scenario: Scenario): string[][] {
  const lines = linesOf(results, scenario)
  const names = (Object.keys(FIGURES) as FigureName[]).filter((name) =>
    lines.some(({ figures }) => figures[name] !== undefined),
  )
  const main = mainOf(scenario)
  const floor = lines.find(({ driver }) => driver === 'floor')?.figures[main]
  const rows = [['', ...names.map((name) => FIGURES[name][0]), 'of the floor', '']]
  for (const { driver, figures, faults } of lines) {
    const value = figures[main]
    const share = floor === undefined || value === undefined ? '–' : `${((100 * value) / floor).toFixed(0)} %`
    rows.push([driver, ...names.map((name) => shown(name, figures[name])), share, faults])
  }
  return rows
}

export function textOf(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  return rows
    .map((row) =>
      row
        .map((cell, column) =>
          column === 0 || column === row.length - 1
            ? cell.padEnd(widths[column]!)
            : cell.padStart(widths[column]!),
        )
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

const CONSUMER = { queue: 'consumer', groups: 'group', readers: 'reader' } as const
const FAN_OUT = {
  none: '',
  atomic: ', each message to all of them in one step',
  topic: ', each message to all of them by a topic',
} as const

export function describe({
  kind,
  producers,
  consumers,
  queues,
  stride,
  fanOut,
  from,
  restart,
  bodyBytes,
  body,
  inFlight,
  rate,
}: Scenario): string {
  const many = (count: number, what: string): string => `${whole(count)} ${what}${count === 1 ? '' : 's'}`
  const parts = [
    kind === 'consume' ? '' : many(producers, 'producer'),
    kind === 'publish' ? '' : many(consumers, CONSUMER[from]),
    queues === 1 && fanOut === 'none' ? '' : `${many(queues, 'queue')}${FAN_OUT[fanOut]}`,
    stride === 1 ? '' : `${whole(stride)} apart`,
    body === 'object' ? `objects of about ${bodyBytes} bytes` : `${whole(bodyBytes)} bytes`,
    rate > 0 ? `${whole(rate)} a second` : `${whole(inFlight)} in flight`,
    restart ? 'the broker restarted before' : '',
  ]
  return parts.filter((part) => part !== '').join(', ')
}

export function markdownOf(results: Results): string {
  const { machine, peers, missing, rounds, commit, atMs } = results
  const out = [
    `Measured on ${new Date(atMs).toISOString().slice(0, 10)}, commit ${commit}: ${machine.cpu}, ${machine.cores} cores, ` +
      `${machine.memoryGib} GiB, Linux ${machine.kernel}, Node ${machine.node}. Medians of ${rounds}; the drivers took turns.`,
    '',
    '| driver | version | settings |',
    '| --- | --- | --- |',
    ...peers.map(({ name, version, settings }) => `| ${name} | ${version} | ${settings} |`),
    ...(missing.length === 0 ? [] : ['', `Not installed and not measured: ${missing.join(', ')}.`]),
  ]
  for (const scenario of results.scenarios) {
    const [titles, ...rows] = tableOf(results, scenario)
    out.push('', `### ${scenario.name}`, '', `${describe(scenario)}.`, '')
    out.push(
      `| ${titles!.join(' | ')} |`,
      `| --- |${titles!
        .slice(1)
        .map(() => ' --: |')
        .join('')}`,
    )
    for (const row of rows) out.push(`| ${row.join(' | ')} |`)
  }
  return `${out.join('\n')}\n`
}

const BAR = { left: 150, width: 430, height: 18, gap: 5, title: 26, right: 140 }

/** Bars with the main figure of each scenario, one below the other. */
export function svgOf(results: Results): string {
  const parts: string[] = []
  let y = 10
  for (const scenario of results.scenarios) {
    const main = mainOf(scenario)
    const lines = linesOf(results, scenario).filter(({ figures }) => figures[main] !== undefined)
    if (lines.length === 0) continue
    const most = Math.max(...lines.map(({ figures }) => figures[main]!))
    y += BAR.title
    parts.push(
      `<text x="10" y="${y - 8}" class="title">${escaped(scenario.name)}: ${FIGURES[main][0]}</text>`,
    )
    for (const { driver, figures } of lines) {
      const value = figures[main]!
      const width = Math.max(1, (BAR.width * value) / most).toFixed(1)
      const text = y + BAR.height - 5
      parts.push(
        `<text x="${BAR.left - 8}" y="${text}" text-anchor="end">${escaped(driver)}</text>`,
        `<rect x="${BAR.left}" y="${y}" width="${width}" height="${BAR.height}" class="${driver === 'sluice' ? 'ours' : driver === 'floor' ? 'floor' : 'peer'}"/>`,
        `<text x="${(BAR.left + Number(width) + 6).toFixed(1)}" y="${text}">${shown(main, value)}</text>`,
      )
      y += BAR.height + BAR.gap
    }
    y += 8
  }
  const width = BAR.left + BAR.width + BAR.right
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${y}" width="${width}" height="${y}" role="img">`,
    '<style>text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600}.ours{fill:#1667c7}.peer{fill:#9aa7b5}.floor{fill:#dfe4ea}</style>',
    `<rect width="${width}" height="${y}" fill="#fff"/>`,
    ...parts,
    '</svg>',
    '',
  ].join('\n')
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
}
