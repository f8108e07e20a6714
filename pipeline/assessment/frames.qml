<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="Symbology|Labeling|Forms">
  <renderer-v2 type="categorizedSymbol" attr="status" forceraster="0" symbollevels="0" enableorderby="0">
    <categories>
      <category value="to do" label="to do" symbol="0" render="true"/>
      <category value="done" label="done" symbol="1" render="true"/>
      <category value="unusable" label="unusable" symbol="2" render="true"/>
    </categories>
    <symbols>
      <symbol name="0" type="fill" alpha="1"><layer class="SimpleFill" enabled="1"><Option type="Map"><Option name="style" type="QString" value="no"/><Option name="outline_color" type="QString" value="230,159,0,255"/><Option name="outline_width" type="QString" value="0.8"/></Option></layer></symbol>
      <symbol name="1" type="fill" alpha="1"><layer class="SimpleFill" enabled="1"><Option type="Map"><Option name="style" type="QString" value="no"/><Option name="outline_color" type="QString" value="0,158,115,255"/><Option name="outline_width" type="QString" value="0.8"/></Option></layer></symbol>
      <symbol name="2" type="fill" alpha="1"><layer class="SimpleFill" enabled="1"><Option type="Map"><Option name="style" type="QString" value="b_diagonal"/><Option name="color" type="QString" value="120,120,120,255"/><Option name="outline_color" type="QString" value="120,120,120,255"/><Option name="outline_width" type="QString" value="0.8"/></Option></layer></symbol>
    </symbols>
  </renderer-v2>
  <labeling type="simple"><settings calloutType="simple"><text-style fieldName="frame" fontSize="9" textColor="0,0,0,255"><text-buffer bufferDraw="1" bufferSize="1"/></text-style></settings></labeling>
  <fieldConfiguration>
    <field name="status"><editWidget type="ValueMap"><config><Option type="Map"><Option name="map" type="List"><Option type="Map"><Option name="to do" type="QString" value="to do"/></Option><Option type="Map"><Option name="done" type="QString" value="done"/></Option><Option type="Map"><Option name="unusable" type="QString" value="unusable"/></Option></Option></Option></config></editWidget></field>
  </fieldConfiguration>
</qgis>
